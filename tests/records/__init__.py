"""Records in a store, and what is told from them."""
