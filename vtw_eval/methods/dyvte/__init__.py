"""DyVTE, its gates and their training."""
