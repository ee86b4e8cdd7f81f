"""Tests of the database server and of its datadir."""
