"""Tests of the data path in both directions, of its memory, and of its failures."""
