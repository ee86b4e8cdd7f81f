"""The stored data about backups: records, object names and segment lists."""
