"""Keys and signatures: keygen and sign, and the options that other commands take."""

import getpass
import socket
from pathlib import Path
from typing import Annotated

import typer

from unlearn_serve.errors import StoreError
from unlearn_serve.format.keys import SigningKey, read_public_key, read_signing_key, write_key_pair
from unlearn_serve.store import Store

SignOption = Annotated[
    Path | None, typer.Option("--sign", help="Private key that signs what is written.", metavar="KEY")
]
TrustedOption = Annotated[
    list[Path] | None,
    typer.Option("--trusted-key", help="Public key to trust, repeatable; refuse what none signed.", metavar="FILE"),
]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(keygen)
    app.command()(sign)


def keygen(
    path: Annotated[Path, typer.Argument(help="Where the private key goes; the public one goes to PATH.pub.")],
) -> None:
    """Make an Ed25519 key pair; prints the public key."""
    typer.echo(write_key_pair(path))


def sign(
    store: Annotated[str, typer.Option("--store", help="Folder or URL of the release store.", metavar="STORE")],
    key: Annotated[Path, typer.Option("--key", help="Private key.", metavar="KEY")],
    digest: Annotated[str | None, typer.Argument(help="A release, or its first 8 or more digits.")] = None,
    channel: Annotated[str | None, typer.Option(help="Sign what this channel says now: entry and release.")] = None,
    trusted_key: TrustedOption = None,
) -> None:
    """Add a signature to a release, or to a channel's newest entry and its release; earlier signatures stay."""
    if (digest is None) == (channel is None):
        raise StoreError("sign: expected a release's digest or --channel, one of the two")
    signer = read_signing_key(key)
    opened = Store.open(store, trusted_keys=[read_public_key(path) for path in trusted_key or []])
    if digest is not None:
        release = opened.resolve(digest)
        opened.sign(release, signer, actor=actor())
        typer.echo(f"{release} signed by {signer.public}")
    if channel is not None:
        entry = opened.sign_channel(channel, signer, actor=actor())
        typer.echo(f"{channel} generation {entry.generation} -> {entry.release} signed by {signer.public}")


def actor() -> str:
    """Who runs this command, and where: what the store's log and channels say."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def open_to_write(
    store: str, sign: Path | None, trusted: list[Path] | None, *, create: bool = False
) -> tuple[Store, SigningKey | None]:
    """A store that trusts the key that signs and those in the files `trusted`, and the key that signs."""
    signer = read_signing_key(sign) if sign else None
    keys = ([signer.public] if signer else []) + [read_public_key(path) for path in trusted or []]
    return Store.open(store, create=create, trusted_keys=keys), signer
