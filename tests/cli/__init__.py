"""The command line: tables, arguments, errors."""
