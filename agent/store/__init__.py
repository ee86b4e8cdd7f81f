"""Object stores, with the protocol and one package for each kind of store."""
