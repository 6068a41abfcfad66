"""What the papers print, and what they call things."""
