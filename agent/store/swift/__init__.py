"""OpenStack Swift as a store."""
