"""A plain directory as a store."""
