"""Object stores: the protocol, and each kind that speaks it."""
