"""Tests of the agent's use of its machine."""
