"""What the engine's workers add to vLLM's: remote calls to stage, flip and report. Named, never pickled."""

import os
import threading
import time
from typing import Any, TypedDict

from unlearn_serve.errors import UnlearnServeError
from unlearn_serve.format.fingerprint import require_same_base
from unlearn_serve.serving import plugin, vllm_internals
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.models import enforced_layers, require_registered
from unlearn_serve.serving.slots import EnforcedLayers

# vLLM imports this module in every worker after it has run the general plugins, and dies if the import fails.
assert plugin.NAME
require_registered()


class WorkerStatus(TypedDict):
    """What one worker reports of itself."""

    rank: int
    pid: int
    release: str | None
    """Digest of the live release; None is the plain model."""
    since: float | None
    """Unix time, seconds, at which this worker flipped to it; None where it started on it."""
    sites: list[int]
    """Blocks with a site."""
    staging: str
    """idle, busy, ready or failed."""
    staged: str | None
    error: str | None


class _Staging:
    """One release on its way into the idle slot, in a thread of its own so that engine steps go on."""

    def __init__(self, release: str, layers: EnforcedLayers, config: ServingConfig) -> None:
        self.release = release
        self.error: str | None = None
        self._layers = layers
        self._config = config
        self._thread = threading.Thread(target=self._run, name="unlearn-stage", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        if self._thread.is_alive():
            return "busy"
        return "failed" if self.error else "ready"

    def _run(self) -> None:
        try:
            release = self._config.open_store().load_release(self.release)
            require_same_base(release.manifest.base_model, self._layers.base_model)
            self._layers.stage(self.release, release.tensors)
        except UnlearnServeError as error:
            self.error = f"{type(error).__name__}: {error}"
        except Exception as error:  # the thread's end must be seen as a failure, whatever it was
            self.error = f"unexpected {type(error).__name__}: {error}"


class UnlearningWorker:
    """Mixed into vLLM's worker class by `--worker-extension-cls`; each method is a `collective_rpc` target."""

    _unlearn_staging: _Staging | None = None
    _unlearn_since: float | None = None

    def unlearn_status(self) -> WorkerStatus:
        """Report what is live and what is staged.

        Raises:
            NotEnforced: this worker's model has no sites.
        """
        layers = self._unlearn_layers()
        staging = self._unlearn_staging
        worker: Any = self
        return WorkerStatus(
            rank=worker.rank,
            pid=os.getpid(),
            release=layers.live.release if layers.live else None,
            since=self._unlearn_since,
            sites=sorted(layers.sites),
            staging=staging.state if staging else "idle",
            staged=staging.release if staging else None,
            error=staging.error if staging else None,
        )

    def unlearn_stage(self, release: str) -> None:
        """Start to read, verify and copy `release` into the idle slot; returns at once, see `unlearn_status`."""
        if self._unlearn_staging is not None and self._unlearn_staging.state == "busy":
            raise RuntimeError(f"still staging {self._unlearn_staging.release}")
        worker: Any = self
        config = ServingConfig.from_additional_config(worker.vllm_config.additional_config)
        assert config is not None, "a worker with sites has settings"
        self._unlearn_staging = _Staging(release, self._unlearn_layers(), config)

    def unlearn_flip(self, release: str) -> None:
        """Make the staged `release` live. To be called while generation is paused.

        Raises:
            SwapError: it is not staged here; nothing has changed.
        """
        self._unlearn_layers().flip(release)
        self._unlearn_since = time.time()

    def unlearn_restore(self, release: str | None) -> None:
        """Undo a flip, if this worker did flip: `release` (None: the plain model) is live again."""
        self._unlearn_layers().restore(release)

    def _unlearn_layers(self) -> EnforcedLayers:
        return enforced_layers(vllm_internals.worker_model(self))
