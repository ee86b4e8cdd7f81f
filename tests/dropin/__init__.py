"""The drop-in for Trove's backup image, by its command line, on real servers without Trove."""
