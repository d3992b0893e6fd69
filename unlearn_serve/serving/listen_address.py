"""Where a server listens that is not vLLM's own port: HOST:PORT, or a Unix socket."""

import ipaddress
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from unlearn_serve.errors import NotEnforced


@dataclass(frozen=True, kw_only=True)
class ListenAddress:
    """An IP address and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `127.0.0.1:8001`, `[::1]:8001` or `unix:/run/admin.sock`.

        Raises:
            ValueError: it is none of these. A name is no IP address: what it means may change.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:"))
            if not path.is_absolute():
                raise ValueError("expected an absolute path behind unix:")
            return cls(path=path)
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        try:
            if ipaddress.ip_address(bare).version == (6 if host == bare else 4) or not 0 < int(port) < 2**16:
                raise ValueError
        except ValueError:
            raise ValueError("expected IP:PORT, [IPv6]:PORT or unix:PATH") from None
        return cls(host=bare, port=int(port))

    def bind(self) -> socket.socket:
        """Return a socket that listens there; a Unix socket is its owner's only, and replaces an abandoned one.

        Raises:
            NotEnforced: it cannot listen there.
        """
        try:
            return self._bind_path(self.path) if self.path else self._bind_port()
        except OSError as error:
            raise NotEnforced(
                f"admin_listen: expected an address to listen on, got {self}: {error.strerror or error}"
            ) from error

    def check(self) -> None:
        """Raise NotEnforced where `bind` would."""
        self.bind().close()
        if self.path:
            self.path.unlink()

    def _bind_port(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family)

    def _bind_path(self, path: Path) -> socket.socket:
        if path.exists():
            self._remove_abandoned(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(str(path))
            path.chmod(0o600)  # nobody can connect before it listens
            bound.listen()
        except OSError:
            bound.close()
            raise
        return bound

    def _remove_abandoned(self, path: Path) -> None:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(0, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(0, "another server listens there")
        path.unlink()

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
