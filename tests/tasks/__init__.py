"""What becomes of a task."""
