"""The one place that talks to obstore: whole objects, put-if-absent, listings; errors become ours.

A folder, S3, GCS and Azure all offer the two operations the store rests on: an atomic put of a whole object, and the
same that fails where the object exists (a hard link on a folder, a conditional put elsewhere).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import LocalStore, ObjectStore, from_url

from unlearn_serve.errors import DigestError, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_RETRY: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
"""obstore's own would try for three minutes: so long would a server not say that its store is away."""

_REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")


class ObjectInfo(NamedTuple):
    """One object of a listing."""

    path: str
    size: int
    modified: datetime


class Backend:
    """Objects under one root. Paths are made by this package from checked names, never taken from outside."""

    def __init__(self, store: ObjectStore, *, name: str) -> None:
        """Use `store`, one of obstore's; `name` is how messages name it."""
        self.name = name
        self._store = store
        self._folder = store.prefix if isinstance(store, LocalStore) else None

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """The objects at `url`: a path, a file:// URL, or a URL of S3, GCS or Azure.

        Args:
            url: where.
            create: make the folder if it is not there; a bucket must exist.

        Raises:
            StoreUnavailable: no such folder, an unknown kind of URL, or a refused configuration.
        """
        scheme = urlsplit(url).scheme if "://" in url else ""
        if scheme in ("", "file"):
            folder = _folder_of(url) if scheme else Path(url).expanduser().absolute()
            if folder.exists() and not folder.is_dir():
                raise StoreUnavailable(f"store {url!r}: expected a folder, got a file")
            if not folder.exists() and not create:
                raise StoreUnavailable(f"store {url!r}: no such folder; check the path, or publish to it to create it")
            with _our_errors(url):
                return cls(LocalStore(prefix=folder, mkdir=create), name=url)
        if scheme not in _REMOTE_SCHEMES:
            known = ", ".join(f"{name}://" for name in ("file", *_REMOTE_SCHEMES))
            raise StoreUnavailable(f"store {url!r}: expected a path or a URL of {known}, got {scheme}://")
        with _our_errors(url):
            return cls(from_url(url, retry_config=_RETRY), name=url)

    def read(self, path: str, *, limit: int) -> bytes | None:
        """The object's bytes, or None where there is no such object.

        Raises:
            DigestError: it is longer than `limit` bytes, so it cannot be what its name says.
            StoreUnavailable: the store cannot be read.
        """
        if self._folder is not None and (place := self._folder / path).exists() and not place.is_file():
            raise DigestError(f"{path}: expected a regular file, got something else")  # a pipe would be waited for
        with self._errors():
            try:
                found = obstore.get(self._store, path)
            except FileNotFoundError:
                self._check_folder()
                return None
            if (size := found.meta["size"]) > limit:
                raise DigestError(f"{path}: expected at most {limit} bytes, got {size}")
            return found.bytes().to_bytes()

    def create(self, path: str, data: bytes) -> bool:
        """Put-if-absent, atomic: True where this call made the object, False where it was there already."""
        self._check_folder()
        with self._errors():
            try:
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
                created = True
            except AlreadyExistsError:
                created = False
            self._flush(path)  # also what a writer that was killed left unflushed
            return created

    def replace(self, path: str, data: bytes) -> None:
        """Put, atomic, over whatever is there."""
        self._check_folder()
        with self._errors():
            obstore.put(self._store, path, data, mode="overwrite", use_multipart=False)
            self._flush(path)

    def delete(self, path: str) -> None:
        """Remove an object; one that is gone already is no error."""
        self._check_folder()
        with self._errors(), suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def objects(self, prefix: str, *, after: str | None = None) -> list[ObjectInfo]:
        """All objects under the folder `prefix`, sorted by path; with `after`, only those whose path is greater."""
        with self._errors():
            found = obstore.list(self._store, prefix, offset=after).collect()
        if not found:
            self._check_folder()
        return sorted(ObjectInfo(one["path"], one["size"], one["last_modified"]) for one in found)

    def children(self, prefix: str) -> list[str]:
        """The names directly under the folder `prefix`, of folders and objects, sorted."""
        with self._errors():
            found = obstore.list_with_delimiter(self._store, prefix)
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        if not paths:
            self._check_folder()
        return sorted(PurePosixPath(path).name for path in paths)

    def _flush(self, path: str) -> None:
        """Make a put on a folder survive a loss of power: obstore leaves that to the operating system."""
        if self._folder is None or os.name == "nt":
            return
        parents = PurePosixPath(path).parents  # new folders are entries of theirs
        for entry in (PurePosixPath(path), *parents):
            handle = os.open(self._folder / entry, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _check_folder(self) -> None:
        """A folder that went away must not look like an empty store, nor be made anew."""
        if self._folder is not None and not self._folder.is_dir():
            raise StoreUnavailable(f"store {self.name!r}: its folder is gone; is the disk mounted?")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with _our_errors(self.name):
            yield


@contextmanager
def _our_errors(name: str) -> Iterator[None]:
    try:
        yield
    except NotSupportedError as problem:
        raise StoreUnavailable(
            f"store {name!r}: expected a store with conditional puts, got one without: {_first_line(problem)}"
        ) from problem
    except (BaseError, OSError, ValueError) as problem:
        raise StoreUnavailable(
            f"store {name!r}: {_first_line(problem)}; check that it is reachable and that the credentials allow this"
        ) from problem


def _first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0][:300]


def _folder_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise StoreUnavailable(f"store {url!r}: expected file:///absolute/path")
    return Path(unquote(parts.path))
