"""The machine: space, priority, locks, OS users, the service manager."""
