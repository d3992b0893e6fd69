"""Where the command line prints: results on stdout, all else on stderr."""

from rich.console import Console

stdout = Console()
stderr = Console(stderr=True)
