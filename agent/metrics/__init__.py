"""Metrics by Prometheus' conventions, on a loopback port or in a file for node_exporter."""
