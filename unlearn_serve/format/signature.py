"""A detached signature: who vouches for a manifest or a channel entry. It lies beside them, so no digest changes."""

import hashlib
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints

from unlearn_serve.errors import BadSignature, FormatError
from unlearn_serve.format.fields import Sha256
from unlearn_serve.format.keys import PublicKey, SigningKey, is_signed_by
from unlearn_serve.format.strict_json import StrictModel

SIGNATURE_SCHEMA: Final = "unlearn-serve/signature/1"
MAX_SIGNATURE_BYTES = 4 * 2**10

_PURPOSE = f"{SIGNATURE_SCHEMA}\n".encode()
"""Put before what is signed, so that no signature made for another purpose counts. The document's own `schema`, in the
signed bytes, keeps manifests and channel entries apart."""


class Signature(StrictModel):
    """The content of signatures/<SHA-256 of the document>/<public key>.json."""

    schema_: Literal["unlearn-serve/signature/1"] = Field(default=SIGNATURE_SCHEMA, alias="schema")
    document: Sha256
    """SHA-256 of the bytes that are signed."""
    key: PublicKey
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def of(cls, document: bytes, key: SigningKey) -> Self:
        """The signature of `document` by `key`; the same two give the same bytes."""
        return cls(
            document=hashlib.sha256(document).hexdigest(), key=key.public, signature=key.sign(_PURPOSE + document).hex()
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Self:
        """Parse the bytes of a signature; `source` is how messages name it.

        Raises:
            FormatError: one line: where, expected, got.
        """
        return cls.read(data, source=source, max_bytes=MAX_SIGNATURE_BYTES, error=FormatError)

    def check(self, document: bytes, *, source: str) -> None:
        """Return if this is the signature of `document` by `key`.

        Raises:
            BadSignature: it is not, naming `source`.
        """
        if not is_signed_by(self.key, bytes.fromhex(self.signature), _PURPOSE + document):
            raise BadSignature(f"{source}: expected the signature of these bytes by key {self.key[:16]}, got another")
