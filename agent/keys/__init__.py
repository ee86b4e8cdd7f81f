"""Master and recovery keys: they wrap data keys, and master keys sign records."""
