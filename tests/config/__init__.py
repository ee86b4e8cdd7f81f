"""The configuration and its secret files."""
