"""Tests, and the private servers they run against."""
