"""Faults made on the real servers and the agent, each with its observations and a verdict."""
