"""The boards tasks: questions about harder scenes than those of shapes, scored by the benchmarks' own code."""
