"""Tests of how tasks are performed, cancelled, recovered and reported."""
