"""Messages and the broker."""
