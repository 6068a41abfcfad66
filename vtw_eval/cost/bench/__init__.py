"""Latency and memory of a model under methods."""
