"""What scores say: evidence of a cell, its aggregation, intervals and tests."""
