"""Numbers that the papers print, as YAML."""
