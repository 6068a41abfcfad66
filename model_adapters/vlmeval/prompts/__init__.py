"""What each family is asked by VLMEvalKit."""
