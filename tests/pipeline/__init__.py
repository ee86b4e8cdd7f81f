"""The data path: both directions, its memory, and its failures."""
