"""Master keys, which wrap data keys and sign records, and recovery keys, which only wrap."""
