"""The programs that copy and restore a database, run as child processes."""
