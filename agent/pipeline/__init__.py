"""The data path in both directions, with bounded memory, parallel stages and ordered bytes."""
