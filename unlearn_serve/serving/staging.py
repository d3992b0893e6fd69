"""Reading a release beside the engine: in a thread of its own, so that engine steps go on."""

import threading
from collections.abc import Callable

from unlearn_serve.errors import UnlearnServeError
from unlearn_serve.format.fingerprint import require_same_base
from unlearn_serve.format.manifest import BaseModelRef
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.store import Release


class Staging:
    """One release on its way from the store into this worker."""

    def __init__(
        self, release: str, config: ServingConfig, base_model: BaseModelRef, take: Callable[[Release], None]
    ) -> None:
        """Start to read `release`, verify it down to the last weight, and hand it to `take`, all in the thread."""
        self.release = release
        self.error: str | None = None
        self._config = config
        self._base_model = base_model
        self._take = take
        self._thread = threading.Thread(target=self._run, name="unlearn-stage", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """busy, ready or failed."""
        if self._thread.is_alive():
            return "busy"
        return "failed" if self.error else "ready"

    def _run(self) -> None:
        try:
            release = self._config.open_store().load_release(self.release)
            require_same_base(release.manifest.base_model, self._base_model)
            self._take(release)
        except UnlearnServeError as error:
            self.error = f"{type(error).__name__}: {error}"
        except Exception as error:  # the thread's end must be seen as a failure, whatever it was
            self.error = f"unexpected {type(error).__name__}: {error}"
