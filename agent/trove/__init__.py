"""The drop-in for OpenStack Trove's backup image. trove/README.md describes it."""
