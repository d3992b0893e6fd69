"""Lines that say how long a benchmark has been running."""

import time
from collections.abc import Callable


def clocked() -> Callable[[str], None]:
    """Return a `print` that puts minutes and seconds since now before each line."""
    began = time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3}:{seconds:02} {line}", flush=True)

    return say
