"""The server's settings: the value of the key `unlearn` in vLLM's `--additional-config`."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from unlearn_serve.errors import NotEnforced
from unlearn_serve.format.keys import PublicKey
from unlearn_serve.serving.listen_address import ListenAddress
from unlearn_serve.serving.plugin import NAME
from unlearn_serve.store import Store

CONFIG_KEY = "unlearn"

SwapMode = Literal["recompute", "drain", "abort"]
"""What becomes of running requests when the release changes, see `Swapper.swap`."""
DRAIN_TIMEOUT_SECONDS = 60.0
MAX_BODY_BYTES = 64 * 2**20


def default_state_dir() -> Path:
    """Return the user's folder for what servers must not lose: last applied releases and audit logs."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "unlearn-serve"


def _rate(text: str) -> str:
    from limits import parse_many

    limits = parse_many(text)
    if len(limits) != 1 or limits[0].amount < 1:
        raise ValueError("expected one limit such as 10/minute")
    return text


def _listen_address(text: str) -> str:
    ListenAddress.parse(text)
    return text


class ServingConfig(BaseModel):
    """Settings of one server; every worker and the API server read the same ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    store: str = Field(min_length=1, description="Folder or URL of the release store.")
    channel: str = Field(default="production", description="The channel whose release is enforced.")
    allow_plain: bool = Field(default=False, description="Start without a release where there is none yet.")
    max_rank: int = Field(default=128, ge=1, le=1024, description="Largest rank of a release; sizes the buffers.")
    poll_seconds: float = Field(default=0.25, gt=0, le=60, description="Seconds between two looks at the channel.")
    stage_timeout_seconds: float = Field(default=60.0, gt=0, description="Seconds a worker may take to stage.")
    swap_mode: SwapMode = Field(default="recompute", description="What a swap does with running requests.")
    drain_timeout_seconds: float = Field(
        default=DRAIN_TIMEOUT_SECONDS, ge=0, le=3600, description="Longest drain; recompute follows."
    )
    routes: int = Field(default=0, ge=0, le=256, description="Routes that are resident at a time; 0 turns them off.")
    route_aliases: dict[str, str] = Field(default_factory=dict, description="Names for routes: alias -> digest.")
    allow_uncovered_routes: bool = Field(
        default=False, description="Serve routes that do not cover the deletion ids of the channel's release."
    )
    trusted_keys: tuple[PublicKey, ...] = Field(
        default=(),
        strict=False,  # JSON has no tuples
        description="Ed25519 public keys; with some, what none of them signed is refused.",
    )
    state_dir: str | None = Field(default=None, description="Folder for the last applied release and the audit log.")
    admin_listen: Annotated[str, AfterValidator(_listen_address)] | None = Field(
        default=None, description="HOST:PORT or unix:PATH that has the admin routes; the public port then has none."
    )
    admin_rate: Annotated[str, AfterValidator(_rate)] = Field(
        default="50/second", description="Most calls of admin routes that are let in, over all keys."
    )
    admin_failure_rate: Annotated[str, AfterValidator(_rate)] = Field(
        default="10/minute", description="Most wrong admin keys from one address before it is refused."
    )
    max_body_bytes: int = Field(
        default=MAX_BODY_BYTES, ge=2**16, le=2**31, description="Largest body of a request to vLLM's routes."
    )

    @classmethod
    def from_additional_config(cls, additional_config: Any) -> Self | None:
        """Return the settings, or None where this server is none of ours.

        Raises:
            NotEnforced: settings are not valid, or VLLM_PLUGINS asks for this plugin and there are no settings.
        """
        raw = additional_config.get(CONFIG_KEY) if isinstance(additional_config, dict) else None
        if raw is None:
            if NAME in os.environ.get("VLLM_PLUGINS", "").split(","):
                raise NotEnforced(
                    f"VLLM_PLUGINS names {NAME}, but --additional-config has no key {CONFIG_KEY!r}: "
                    "expected the settings of unlearn-serve there (start with `unlearn-serve serve`)"
                )
            return None
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (CONFIG_KEY, *first["loc"]))
            raise NotEnforced(f"--additional-config: {where}: {first['msg']}, got {first['input']!r}") from error

    def require_servers(self, servers: int) -> None:
        """Refuse what several API servers of one `vllm serve` cannot do.

        Raises:
            NotEnforced: they cannot share routes, or who asks one of them for a swap might ask another than swaps.
        """
        if servers > 1 and self.routes:
            raise NotEnforced(
                f"--routes: expected --api-server-count 1, got {servers}: each API server numbers adapters by itself"
            )
        if servers > 1 and self.admin_listen is None:
            raise NotEnforced(
                "--api-server-count (by default as many as --data-parallel-size): expected 1 without --admin-listen, "
                f"got {servers}: admin calls must reach the one that follows the channel"
            )

    def open_store(self) -> Store:
        """Open the store, with the trusted keys: the only way in which a server may do so.

        Raises:
            StoreUnavailable: as `Store.open`.
        """
        return Store.open(self.store, trusted_keys=self.trusted_keys)

    @property
    def state_path(self) -> Path:
        """The folder of this store and channel, for the last applied release and the audit log."""
        root = Path(self.state_dir) if self.state_dir else default_state_dir()
        return root / hashlib.sha256(f"{self.store}\n{self.channel}".encode()).hexdigest()[:16]

    @property
    def board_path(self) -> Path:
        """The file that several API servers share."""
        return self.state_path / "board"
