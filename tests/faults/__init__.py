"""Faults done to the real servers and to the agent: what was done, what was seen, the verdict."""
