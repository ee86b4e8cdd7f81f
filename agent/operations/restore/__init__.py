"""Restore a chain of backups as a datadir."""
