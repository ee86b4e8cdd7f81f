"""Access to the database server: the agent's SQL, and the table files in the datadir."""
