"""The whole service under a real systemd, in a container that boots it."""
