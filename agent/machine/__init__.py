"""The machine that the agent runs on: space, priority, locks, OS users, the service manager."""
