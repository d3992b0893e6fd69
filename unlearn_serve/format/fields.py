"""Names, digests and texts as the format spells them; whatever else is refused before it reaches a path."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, StringConstraints

from unlearn_serve.errors import FormatError, ManifestError, UnlearnServeError
from unlearn_serve.format.strict_json import shown

SHA256_PATTERN = r"^[0-9a-f]{64}$"
DELETION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
SET_NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,31}$"
MEASURE_PATTERN = r"^([a-z][a-z0-9_-]{0,31}\.)?[a-z][a-z0-9_]{0,31}$"
SITE_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"expected one line of printable characters, got {shown(text)}")
    return text


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"expected a time in UTC, got {moment.isoformat()}")
    return moment.astimezone(UTC)


Sha256 = Annotated[str, StringConstraints(pattern=SHA256_PATTERN)]
"""A SHA-256 digest: 64 lower-case hexadecimal digits."""

DeletionId = Annotated[str, StringConstraints(pattern=DELETION_ID_PATTERN)]
SetName = Annotated[str, StringConstraints(pattern=SET_NAME_PATTERN)]
MeasureName = Annotated[str, StringConstraints(pattern=MEASURE_PATTERN)]
"""A measure of a set, `forget.probability`, or of the model, `privacy_leak`."""

SitePath = Annotated[str, StringConstraints(pattern=SITE_PATTERN, max_length=256)]

Text = Annotated[str, StringConstraints(max_length=65536)]
"""Free text; pydantic refuses what UTF-8 cannot hold."""

Line = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_one_line)]
"""Free text without control characters, so that it cannot forge lines of a log."""

NonEmptyLine = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_one_line)]
"""As `Line`, with at least one character."""

Actor = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_one_line)]
"""Who did it: one short line."""

UtcTime = Annotated[AwareDatetime, AfterValidator(_utc)]
"""A moment in UTC, written like 2026-01-31T12:00:00.123456Z."""


def require_sha256(text: str, *, what: str, error: type[UnlearnServeError] = FormatError) -> str:
    """Return `text` if it is a SHA-256 digest.

    Raises:
        UnlearnServeError: as `error`, naming `what`.
    """
    if re.fullmatch(SHA256_PATTERN[1:-1], text) is None:
        raise error(f"{what}: expected 64 lower-case hexadecimal digits, got {shown(text)}")
    return text


def deletion_ids(ids: list[str]) -> tuple[str, ...]:
    """The ids of deletion requests as a manifest holds them: checked, sorted, each once.

    Raises:
        ManifestError: none given, or one that breaks the pattern.
    """
    if not ids:
        raise ManifestError("deletion_ids: expected at least one id of a deletion request, got none")
    for one in ids:
        if re.fullmatch(DELETION_ID_PATTERN[1:-1], one) is None:
            raise ManifestError(
                f"deletion_ids: expected 1 to 128 of A-Z a-z 0-9 . _ : - that start with a letter or digit, "
                f"got {shown(one)}"
            )
    return tuple(sorted(set(ids)))
