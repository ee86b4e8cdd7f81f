"""The database server: what the agent asks it by SQL, and what lies in its datadir."""
