"""The experiments: each file makes the stages of one question."""
