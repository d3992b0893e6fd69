"""docs/results.md, out of the result files."""
