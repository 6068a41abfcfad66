"""Sweeps: a typed plan becomes cells, a runner evaluates them, a store keeps them."""
