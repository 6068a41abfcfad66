"""Visual Tokens Withdrawal, and the search for its layer."""
