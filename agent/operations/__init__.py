"""What the agent does with backups, one verb a module."""
