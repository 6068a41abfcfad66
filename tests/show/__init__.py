"""Pages that show what methods keep."""
