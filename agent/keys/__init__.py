"""Master keys and recovery keys, which wrap data keys. Master keys also sign records."""
