"""What the store keeps about backups: records, object names, segment lists."""
