"""Tests of records in a store, and of the conclusions from them."""
