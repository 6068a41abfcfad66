"""Groups of lmms-eval tasks: one name per table of the papers."""
