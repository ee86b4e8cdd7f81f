"""Tasks: take them, do them one at a time, settle what a crash cut off, and report."""
