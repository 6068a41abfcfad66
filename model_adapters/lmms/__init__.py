"""Models for lmms-eval."""
