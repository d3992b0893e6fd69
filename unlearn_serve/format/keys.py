"""Ed25519 keys: private ones in PEM files, public ones named by their own 32 bytes in hexadecimal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import StringConstraints

from unlearn_serve.errors import KeyFileError
from unlearn_serve.format.fields import SHA256_PATTERN

PublicKey = Annotated[str, StringConstraints(pattern=SHA256_PATTERN)]
"""An Ed25519 public key: its 32 bytes as 64 lower-case hexadecimal digits. The key is its own name."""

MAX_KEY_BYTES = 16 * 2**10


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key and the name of its public half; never printed, never stored beside what it signs."""

    private: Ed25519PrivateKey
    public: str

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature; the same message gives the same bytes."""
        return self.private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"


def generate_key() -> SigningKey:
    """A new key from the operating system's randomness."""
    return _signing_key(Ed25519PrivateKey.generate())


def write_key_pair(path: Path) -> str:
    """Write a new private key to `path`, for its owner only, and its public key to `path`.pub; return the latter.

    Raises:
        KeyFileError: one of the files is there already, or cannot be written.
    """
    key = generate_key()
    public_path = path.with_name(f"{path.name}.pub")
    try:
        if public_path.exists():
            raise FileExistsError
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(
            key.private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        public_path.write_bytes(
            key.private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    except FileExistsError:
        raise KeyFileError(f"{path}: expected a place for a new key, got one that is taken; keys are kept") from None
    except OSError as problem:
        raise KeyFileError(f"{path}: the key cannot be written: {problem.strerror}") from None
    return key.public


def read_signing_key(path: Path) -> SigningKey:
    """The private key in a PEM file (PKCS #8, unencrypted), as `write_key_pair` and openssl write it.

    Raises:
        KeyFileError: the file cannot be read or holds something else.
    """
    data = _read(path)
    try:
        found = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise KeyFileError(
            f"{path}: expected an Ed25519 private key in PEM, unencrypted; `unlearn-serve keygen` makes one"
        )
    return _signing_key(found)


def read_public_key(path: Path) -> str:
    """The public key in a PEM file, in hexadecimal.

    Raises:
        KeyFileError: the file cannot be read or holds something else, a private key for one.
    """
    data = _read(path)
    try:
        found = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PublicKey):
        raise KeyFileError(f"{path}: expected an Ed25519 public key in PEM: the file KEY.pub of `unlearn-serve keygen`")
    return _name(found)


def is_signed_by(public: str, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that of `message` by the key `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signing_key(private: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(private=private, public=_name(private.public_key()))


def _name(public: Ed25519PublicKey) -> str:
    return public.public_bytes_raw().hex()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as problem:
        raise KeyFileError(f"{path}: expected a key file, got: {problem.strerror}") from None
