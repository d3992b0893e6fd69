"""The part of a store under signatures/: who vouches for a manifest or a channel entry, one file for each key.

A document may carry several signatures, which is how keys are rotated. A reader with trusted keys asks for those keys'
files by name; it never lists, so strangers' files cost it nothing.
"""

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import suppress

from unlearn_serve.errors import BadSignature, FormatError, Unsigned
from unlearn_serve.format.keys import SigningKey
from unlearn_serve.format.signature import MAX_SIGNATURE_BYTES, Signature
from unlearn_serve.store.backend import Backend

SIGNATURE_PATH = re.compile(r"signatures/([0-9a-f]{64})/([0-9a-f]{64})\.json")


class Signatures:
    """Signatures of one store, and the keys that its reader trusts."""

    def __init__(self, backend: Backend, trusted_keys: Collection[str] = ()) -> None:
        """Use the objects of `backend`; without `trusted_keys`, public keys in hexadecimal, nothing is required."""
        self._backend = backend
        self.trusted_keys = tuple(dict.fromkeys(trusted_keys))

    def add(self, document: bytes, key: SigningKey) -> None:
        """Write the signature of `document` by `key`; where wrong bytes lie in its place they are replaced."""
        signature = Signature.of(document, key)
        self._put(_path(signature.document, signature.key), signature.to_bytes())

    def remove(self, document: bytes, key: SigningKey) -> None:
        """Take back the signature of `document` by `key`."""
        self._backend.delete(_path(hashlib.sha256(document).hexdigest(), key.public))

    def require(self, document: bytes, *, what: str) -> None:
        """Return if a trusted key signed `document`, or if no keys are set.

        Args:
            document: the bytes of a manifest or channel entry.
            what: how messages name it.

        Raises:
            Unsigned: none of the trusted keys did.
            BadSignature: a trusted key's file is there, but it is not that key's signature of these bytes.
        """
        if self.trusted_keys and not self._trusted(document, what):
            keys = ", ".join(key[:16] for key in self.trusted_keys)
            raise Unsigned(
                f"{what}: expected a signature by a trusted key ({keys}), got none; "
                "`unlearn-serve sign` adds one, if this is to be served"
            )

    def copy(self, document: bytes, source: "Signatures") -> None:
        """Copy what `source` holds of `document` by its trusted keys."""
        for path, signature in source._trusted(document, "copy").items():
            self._put(path, signature.to_bytes())

    def signers(self, document: bytes) -> tuple[str, ...]:
        """The public keys whose valid signature of `document` is here, trusted or not, sorted."""
        found = []
        for one in self._backend.objects(f"signatures/{hashlib.sha256(document).hexdigest()}"):
            match = SIGNATURE_PATH.fullmatch(one.path)
            with suppress(BadSignature, FormatError):
                if match and self._read(document, match[2]):
                    found.append(match[2])
        return tuple(sorted(found))

    def problems(self, document: bytes) -> Iterator[tuple[str, str]]:
        """Every signature of `document`, whoever made it, that is not one: path and what is wrong."""
        for one in self._backend.objects(f"signatures/{hashlib.sha256(document).hexdigest()}"):
            if found := SIGNATURE_PATH.fullmatch(one.path):
                try:
                    self._read(document, found[2])
                except (BadSignature, FormatError) as error:
                    yield one.path, str(error)

    def _trusted(self, document: bytes, what: str) -> dict[str, Signature]:
        """The valid signatures by trusted keys, by path; one that is not valid counts where there is no other."""
        found: dict[str, Signature] = {}
        wrong: Exception | None = None
        for key in self.trusted_keys:
            try:
                signature = self._read(document, key)
            except (BadSignature, FormatError) as error:
                wrong = error
                continue
            if signature is not None:
                found[_path(signature.document, key)] = signature
        if wrong and not found:
            raise BadSignature(f"{what}: {wrong}; sign it again, and find out who wrote this") from wrong
        return found

    def _read(self, document: bytes, key: str) -> Signature | None:
        digest = hashlib.sha256(document).hexdigest()
        path = _path(digest, key)
        data = self._backend.read(path, limit=MAX_SIGNATURE_BYTES)
        if data is None:
            return None
        signature = Signature.from_bytes(data, source=path)
        if (signature.document, signature.key) != (digest, key):
            raise BadSignature(f"{path}: expected the signature of this place, got one by {signature.key[:16]}")
        signature.check(document, source=path)
        return signature

    def _put(self, path: str, data: bytes) -> None:
        if self._backend.create(path, data):
            return
        try:
            same = self._backend.read(path, limit=MAX_SIGNATURE_BYTES) == data
        except FormatError:
            same = False
        if not same:
            self._backend.replace(path, data)


def _path(document: str, key: str) -> str:
    return f"signatures/{document}/{key}.json"
