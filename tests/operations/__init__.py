"""Tests of the verbs that need no daemon."""
