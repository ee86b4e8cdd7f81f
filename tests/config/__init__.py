"""Tests of the configuration and its secret files."""
