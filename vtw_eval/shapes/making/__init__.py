"""How the embedded checkpoint was made."""
