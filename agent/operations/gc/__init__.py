"""Find and remove what belongs to no backup."""
