"""Tests of the command line: tables, arguments, errors."""
