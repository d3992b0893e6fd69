"""What the engine's workers add to vLLM's: remote calls to stage, flip and report. Named, never pickled."""

import os
import time
from typing import Any, TypedDict

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving import plugin, vllm_internals, vllm_lora
from unlearn_serve.serving.answers import answers
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.models import enforced_layers, require_registered
from unlearn_serve.serving.slots import EnforcedLayers
from unlearn_serve.serving.staging import Staging
from unlearn_serve.serving.worker_routes import RouteStatus, WorkerRoutes
from unlearn_serve.store import Release

# vLLM imports this module in every worker after it has run the general plugins, and dies if the import fails.
assert plugin.NAME
require_registered()


class WorkerStatus(TypedDict):
    """What one worker reports of itself."""

    engine: int
    """Data parallel rank of its engine."""
    rank: int
    """Among the workers of its engine."""
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
    routes: list[RouteStatus]
    unverified: list[int]
    """Adapters with unlearning layers that are no verified releases: loaded as ordinary LoRA, and not served."""
    route_sites: list[int]
    """Blocks whose sites take routes; none where they are off."""
    compilation: str
    """vLLM's mode of compilation in this worker."""


class UnlearningWorker:
    """Mixed into vLLM's worker class by `--worker-extension-cls`; each method is a `collective_rpc` target.

    What a method is said to raise, it answers as a `Failure`.
    """

    _unlearn_staging: Staging | None = None
    _unlearn_worker_routes: WorkerRoutes | None = None
    _unlearn_since: float | None = None

    @answers
    def unlearn_status(self) -> WorkerStatus:
        """Report what is live and what is staged.

        Raises:
            NotEnforced: this worker's model has no sites.
        """
        layers = self._unlearn_layers()
        staging = self._unlearn_staging
        worker: Any = self
        routes = self._unlearn_routes() if layers.routes is not None else None
        return WorkerStatus(
            engine=vllm_internals.engine_index(worker.vllm_config),
            rank=worker.rank,
            pid=os.getpid(),
            release=layers.live.release if layers.live else None,
            since=self._unlearn_since,
            sites=sorted(layers.sites),
            staging=staging.state if staging else "idle",
            staged=staging.release if staging else None,
            error=staging.error if staging else None,
            routes=routes.status() if routes else [],
            unverified=routes.unverified() if routes else [],
            route_sites=routes.sites if routes else [],
            compilation=vllm_lora.compilation_mode(worker.vllm_config),
        )

    @answers
    def unlearn_stage(self, release: str) -> None:
        """Start to read, verify and copy `release` into the idle slot; returns at once, see `unlearn_status`."""
        if self._unlearn_staging is not None and self._unlearn_staging.state == "busy":
            raise RuntimeError(f"still staging {self._unlearn_staging.release}")
        layers = self._unlearn_layers()

        def take(found: Release) -> None:
            layers.stage(found.digest, found.tensors, found.manifest.deletion_ids)

        self._unlearn_staging = Staging(release, self._unlearn_config(), layers.base_model, take)

    @answers
    def unlearn_flip(self, release: str) -> None:
        """Make the staged `release` live. To be called while generation is paused.

        Raises:
            SwapError: it is not staged here; nothing has changed.
        """
        self._unlearn_layers().flip(release)
        self._unlearn_since = time.time()

    @answers
    def unlearn_restore(self, release: str | None) -> None:
        """Undo a flip, if this worker did flip: `release` (None: the plain model) is live again."""
        self._unlearn_layers().restore(release)

    @answers
    def unlearn_stage_route(self, release: str, lora_id: int, path: str) -> None:
        """Start to read and verify `release` as adapter `lora_id`; returns at once, see `unlearn_route_staging`."""
        self._unlearn_routes().stage(release, lora_id, path)

    @answers
    def unlearn_route_staging(self, lora_id: int) -> tuple[str, str | None]:
        """Report how far `unlearn_stage_route` is: busy, ready or failed, and why it failed."""
        return self._unlearn_routes().staging(lora_id)

    @answers
    def unlearn_adopt_route(self, lora_id: int) -> None:
        """Hand a staged route to vLLM's LoRA manager, so that requests can name it.

        Raises:
            SwapError: it is not staged here.
        """
        self._unlearn_routes().adopt(lora_id)

    @answers
    def unlearn_drop_route(self, lora_id: int) -> bool:
        """Take a route out of vLLM's LoRA manager; tells whether it was there."""
        return self._unlearn_routes().drop(lora_id)

    def _unlearn_routes(self) -> WorkerRoutes:
        layers = self._unlearn_layers()
        if layers.routes is None:
            raise NotEnforced("this server has no routes: start it with --routes N")
        if self._unlearn_worker_routes is None:
            model = vllm_internals.worker_model(self)
            self._unlearn_worker_routes = WorkerRoutes(model, layers, self._unlearn_config())
        return self._unlearn_worker_routes

    def _unlearn_config(self) -> ServingConfig:
        worker: Any = self
        config = ServingConfig.from_additional_config(worker.vllm_config.additional_config)
        assert config is not None, "a worker with sites has settings"
        return config

    def _unlearn_layers(self) -> EnforcedLayers:
        return enforced_layers(vllm_internals.worker_model(self))
