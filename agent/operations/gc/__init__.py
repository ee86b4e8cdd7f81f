"""Find and remove stored objects that belong to no backup."""
