"""Tests with the real OpenStack Trove. They run only if they are named."""
