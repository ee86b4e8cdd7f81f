"""Measurements on real servers. They are not tests, and have no time limit."""
