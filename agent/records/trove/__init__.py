"""The layout that OpenStack Trove reads: all of a backup goes with its one object."""
