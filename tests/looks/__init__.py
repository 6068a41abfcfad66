"""Checks of what people see, with a browser and LaTeX: ``tests/looks/run.sh`` brings both and runs them."""
