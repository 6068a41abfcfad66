"""The version of vtw-eval."""

__version__ = "0.1.0"
