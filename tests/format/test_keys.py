"""Key files and signatures: what is made is read back, and nothing else passes for it."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from unlearn_serve.errors import BadSignature, FormatError, KeyFileError
from unlearn_serve.format.keys import generate_key, read_public_key, read_signing_key, write_key_pair
from unlearn_serve.format.signature import Signature

KEY, OTHER = generate_key(), generate_key()


def test_a_pair_is_read_back(tmp_path: Path) -> None:
    public = write_key_pair(tmp_path / "ops")
    assert read_public_key(tmp_path / "ops.pub") == public == read_signing_key(tmp_path / "ops").public
    assert (tmp_path / "ops").stat().st_mode & 0o777 == 0o600
    assert public not in (tmp_path / "ops").read_text()


@pytest.mark.parametrize("taken", ["ops", "ops.pub"])
def test_no_key_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(KeyFileError, match="got one that is taken"):
        write_key_pair(tmp_path / "ops")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_signing_key_does_not_print_its_secret() -> None:
    secret = KEY.private.private_bytes_raw().hex()
    assert secret not in repr(KEY)
    assert KEY.public in repr(KEY)


def test_other_files_are_no_keys(tmp_path: Path) -> None:
    private = write_key_pair(tmp_path / "ops") and tmp_path / "ops"
    encrypted = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    other_kind = ec.generate_private_key(ec.SECP256R1())
    contents = {
        "empty": b"",
        "noise": b"\x00" * 100,
        "encrypted": encrypted,
        "ec": other_kind.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "ec.pub": other_kind.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "ops.pub", *(tmp_path / name for name in contents)):
        with pytest.raises(KeyFileError, match="expected") as error:
            read_signing_key(path)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "nowhere", private, *(tmp_path / name for name in contents)):
        with pytest.raises(KeyFileError, match="expected"):
            read_public_key(path)


def test_a_signature_holds_for_its_document_and_key_only() -> None:
    """S2."""
    signature = Signature.of(b"document", KEY)
    assert Signature.from_bytes(signature.to_bytes(), source="s") == signature
    signature.check(b"document", source="s")
    for wrong, document in (
        (signature, b"document "),
        (signature, b""),
        (signature.model_copy(update={"key": OTHER.public}), b"document"),
        (signature.model_copy(update={"key": "0" * 64}), b"document"),
        (signature.model_copy(update={"signature": "0" * 128}), b"document"),
        (signature.model_copy(update={"signature": KEY.sign(b"document").hex()}), b"document"),  # no purpose before it
    ):
        with pytest.raises(BadSignature, match=r"^s: expected the signature of these bytes by key "):
            wrong.check(document, source="s")


@given(document=st.binary(max_size=99), place=st.integers(0, 127), digit=st.sampled_from("0123456789abcdef"))
def test_any_changed_digit_is_seen(document: bytes, place: int, digit: str) -> None:
    """S2."""
    right = Signature.of(document, KEY)
    wrong = right.model_copy(update={"signature": right.signature[:place] + digit + right.signature[place + 1 :]})
    if wrong == right:
        wrong.check(document, source="s")
    else:
        with pytest.raises(BadSignature):
            wrong.check(document, source="s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b"signature/1", b"signature/2"), "schema: expected 'unlearn-serve/signature/1'"),
        (lambda data: data + b" ", "canonical JSON"),
        (lambda data: b"{}", "schema: expected"),
        (lambda data: b"[]", "a JSON object"),
        (lambda data: data.replace(b'"key"', b'"kez"'), "missing|unknown"),
        (lambda data: data[:-1] + b',"at":1}', "unknown key"),
        (lambda data: b" " * 4097, "at most 4096 bytes"),
        (lambda data: data.upper(), "expected"),
    ],
)
def test_a_malformed_signature_is_refused(change: object, message: str) -> None:
    """S1."""
    with pytest.raises(FormatError, match=f"^s: .*({message})"):
        Signature.from_bytes(change(Signature.of(b"document", KEY).to_bytes()), source="s")  # type: ignore[operator]
