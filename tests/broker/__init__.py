"""Tests of messages and of the connection to the broker."""
