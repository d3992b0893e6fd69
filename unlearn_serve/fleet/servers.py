"""Which servers there are: the operator's list, as URLs or as a small YAML (or JSON) file.

schema: unlearn-serve/fleet/1
servers:
  - url: http://10.0.0.5:8000
  - url: https://gpu-2.internal
    name: gpu-2
    admin_key_variable: GPU_2_ADMIN_KEY
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import httpx
from pydantic import AfterValidator, Field

from unlearn_serve.errors import FormatError, ServingError
from unlearn_serve.format import one_line_errors
from unlearn_serve.format.fields import NonEmptyLine
from unlearn_serve.format.strict_json import StrictModel, shown
from unlearn_serve.format.strict_yaml import read_yaml
from unlearn_serve.serving.admin_key import ADMIN_KEY_VARIABLE

MAX_FLEET_BYTES = 2**20
API_KEY_VARIABLE = "VLLM_API_KEY"
UNIX = "unix:"


def _base_url(text: str) -> str:
    if text.startswith(UNIX):
        if not Path(text.removeprefix(UNIX)).is_absolute():
            raise ValueError(f"expected unix: and the absolute path of an admin socket, got {shown(text)}")
        return text
    if "@" in text:
        raise ValueError("expected a URL without user and password; name the variables that hold keys")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as problem:
        raise ValueError(f"expected the base URL of a server, got {shown(text)}: {problem}") from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"expected the base URL of a server, like http://10.0.0.5:8000, got {shown(text)}")
    return str(url).rstrip("/")


class Server(StrictModel):
    """One server: where it answers, and which environment variables hold its keys."""

    url: Annotated[str, AfterValidator(_base_url)]
    """Without /v1; or unix:PATH, its admin socket."""
    name: NonEmptyLine | None = None
    admin_key_variable: NonEmptyLine = ADMIN_KEY_VARIABLE
    api_key_variable: NonEmptyLine = API_KEY_VARIABLE

    @property
    def label(self) -> str:
        """How it is named to people: its name, or host and port, or its socket."""
        return self.name or self.url.rpartition("://")[2]

    @property
    def socket(self) -> str | None:
        """The path of its admin socket, where that is how it is asked."""
        return self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None

    @property
    def admin_key(self) -> str:
        """The admin key to send: the first where the variable holds several, empty where it is not set."""
        return os.environ.get(self.admin_key_variable, "").partition(",")[0].strip()


class _Document(StrictModel):
    schema_: Literal["unlearn-serve/fleet/1"] = Field(alias="schema")
    servers: Annotated[list[Server], Field(min_length=1)]


def servers_at(urls: Iterable[str]) -> list[Server]:
    """The servers at these base URLs.

    Raises:
        FormatError: one is no URL, or is there twice.
    """
    servers = []
    for url in urls:
        with one_line_errors("--url", FormatError):
            servers.append(Server(url=url))
    return _each_once(servers, source="--url")


def read_fleet(path: Path) -> list[Server]:
    """Read a fleet file; keys are not in it, but the names of the environment variables that hold them may be.

    Raises:
        FormatError: it cannot be read, is not YAML, breaks the schema, or names a server twice; one line.
    """
    _, found = read_yaml(path, what="fleet file", max_bytes=MAX_FLEET_BYTES)
    with one_line_errors(str(path), FormatError):
        document = _Document.model_validate(found)
    return _each_once(document.servers, source=str(path))


def require_admin_keys(servers: Iterable[Server]) -> None:
    """Find out before a channel moves, and not after, that its servers could not be asked.

    Raises:
        ServingError: a server's admin key is not in the environment.
    """
    for variable in sorted({one.admin_key_variable for one in servers}):
        if not os.environ.get(variable):
            raise ServingError(f"expected the servers' admin key in the environment variable {variable}, got none")


def _each_once(servers: list[Server], *, source: str) -> list[Server]:
    for what, values in (("URL", [one.url for one in servers]), ("name", [one.label for one in servers])):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise FormatError(f"{source}: expected each server once, got the {what} {shown(twice[0])} twice")
    return servers
