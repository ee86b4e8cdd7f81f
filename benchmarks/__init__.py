"""Measurements on real servers; none of them is a test, and none has a time limit."""
