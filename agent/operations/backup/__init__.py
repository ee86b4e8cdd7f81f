"""Make a backup and prove that it is complete."""
