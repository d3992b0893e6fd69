"""Benchmarks: what serving under releases costs, and what else one could do. README.md says how each number is made."""
