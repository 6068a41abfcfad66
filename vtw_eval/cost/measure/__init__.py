"""Costs found by counting what a model really does."""
