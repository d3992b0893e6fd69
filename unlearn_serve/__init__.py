"""unlearn-serve: deletion requests as unlearning layers, live on a running vLLM server."""

__version__ = "0.1.0"
