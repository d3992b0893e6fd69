"""What is measured, a file for each family: pure functions over per-token log-probabilities and greedy answers.

The definitions are open-unlearning's (github.com/locuslab/open-unlearning, Dorna et al. 2025); docs/evaluation.md has
each with its equation, its direction and where it differs.
"""
