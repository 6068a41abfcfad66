"""Plans of the papers' tables, as YAML."""
