"""Metrics, the rules that read them, and a real Prometheus."""
