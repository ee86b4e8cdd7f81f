"""Tests of the self-test on real servers, with one fault planted at a time."""
