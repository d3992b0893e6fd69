"""Names of what this server keeps on the state of vLLM's app."""

STATE = "unlearning"
"""The Follower."""
ROUTES = "unlearning_routes"
"""The Routes, None where they are off."""
