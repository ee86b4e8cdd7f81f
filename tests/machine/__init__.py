"""What the agent asks of its machine."""
