"""Restore a chain of backups into a datadir."""
