"""Checkpoints that answer: families of models, what they are asked, and the runner; no harness is needed."""
