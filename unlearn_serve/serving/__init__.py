"""The vLLM plugin: the only package here that imports vLLM."""
