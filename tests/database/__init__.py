"""The database server and its datadir."""
