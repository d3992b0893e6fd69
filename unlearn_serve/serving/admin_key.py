"""The admin keys: where they come from, and whether a key is one of them."""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from unlearn_serve.errors import NotEnforced

ADMIN_HEADER = "X-Unlearn-Admin-Key"
ADMIN_KEY_VARIABLE = "UNLEARN_ADMIN_KEY"
"""Environment variable with the admin key, or several with commas between them. Empty: admin endpoints are off."""
ADMIN_KEY_FILE_VARIABLE = "UNLEARN_ADMIN_KEY_FILE"
"""Environment variable with the path of a file that holds them instead, one a line."""

_KEY = re.compile(r"[!-+\--~]{16,256}")


class AdminKeys:
    """The admin keys of one server. Those of a file are read anew for each check, so that a key can be replaced."""

    def __init__(self, environment: Mapping[str, str], *, inference_keys: Iterable[str] = ()) -> None:
        """Take the keys, or the path of their file, from `environment`.

        Raises:
            NotEnforced: both are given, the file cannot be read or holds no key, or a key is not valid: shorter than
                16 characters, not printable ASCII, or one of `inference_keys`, whose holders would be admins.
        """
        self._inference = [_digest(key) for key in inference_keys]
        self._given = environment.get(ADMIN_KEY_VARIABLE, "")
        path = environment.get(ADMIN_KEY_FILE_VARIABLE)
        if path and self._given:
            raise NotEnforced(f"expected {ADMIN_KEY_VARIABLE} or {ADMIN_KEY_FILE_VARIABLE}, got both; leave one out")
        self._file = Path(path) if path else None
        self.digests()

    @property
    def on(self) -> bool:
        """Whether the server was started with keys at all."""
        return bool(self._file or self._given)

    def require(self, what: str) -> None:
        """Raise NotEnforced where there are no keys and `what` asks for some."""
        if not self.on:
            raise NotEnforced(
                f"{what}: expected admin keys in {ADMIN_KEY_VARIABLE} or {ADMIN_KEY_FILE_VARIABLE}, got none"
            )

    def digests(self) -> list[bytes]:
        """Return the SHA-256 of each key.

        Raises:
            NotEnforced: as above; a server that runs lets nobody in then.
        """
        if self._file is None:
            return [self._checked(key.strip(), ADMIN_KEY_VARIABLE) for key in self._given.split(",") if self._given]
        try:
            lines = self._file.read_text("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise NotEnforced(
                f"{ADMIN_KEY_FILE_VARIABLE}: expected an ASCII file that can be read, got {error}"
            ) from error
        keys = [line.strip() for line in lines if line.strip()]
        if not keys:
            raise NotEnforced(f"{ADMIN_KEY_FILE_VARIABLE}: expected a key on each line of {self._file}, got none")
        return [self._checked(key, ADMIN_KEY_FILE_VARIABLE) for key in keys]

    def accept(self, key: str) -> bool:
        """Return whether `key` is one of the admin keys, in a time that does not tell which; reads the file.

        Raises:
            NotEnforced: as `digests`.
        """
        given = _digest(key)
        found = False
        for digest in self.digests():
            found |= secrets.compare_digest(given, digest)
        return found

    def _checked(self, key: str, where: str) -> bytes:
        if not _KEY.fullmatch(key):
            raise NotEnforced(
                f"{where}: expected keys of 16 to 256 printable ASCII characters without spaces and commas, got one of "
                f"{len(key)} characters; `openssl rand -hex 16` makes one"
            )
        digest = _digest(key)
        if any(secrets.compare_digest(digest, other) for other in self._inference):
            raise NotEnforced(f"{where}: expected keys that are no API keys, got one that is")
        return digest


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
