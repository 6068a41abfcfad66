"""The shapes tasks: questions about rendered scenes, scored by the benchmarks' own code."""
