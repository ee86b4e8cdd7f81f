"""Backup and restore in the layout of OpenStack Trove."""
