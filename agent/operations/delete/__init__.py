"""Delete a backup and its descendants."""
