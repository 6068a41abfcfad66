"""Models for VLMEvalKit."""
