"""Tasks for lmms-eval that upstream lacks; give this directory to ``lmms-eval --include_path``."""
