"""The admin key: what every route under /v1/unlearning asks for."""

import hashlib
import os
import secrets
from typing import Annotated

from fastapi import Header, HTTPException

from unlearn_serve.serving.config import ADMIN_HEADER, ADMIN_KEY_VARIABLE


def require_admin(key: Annotated[str | None, Header(alias=ADMIN_HEADER)] = None) -> None:
    """Let only the admin key pass; compares digests in constant time."""
    expected = os.environ.get(ADMIN_KEY_VARIABLE)
    if not expected:
        raise HTTPException(403, f"admin endpoints are off: start the server with {ADMIN_KEY_VARIABLE} set")
    if key is None:
        raise HTTPException(401, f"expected the admin key in the header {ADMIN_HEADER}, got none")
    if not secrets.compare_digest(hashlib.sha256(key.encode()).digest(), hashlib.sha256(expected.encode()).digest()):
        raise HTTPException(401, f"the key in the header {ADMIN_HEADER} is not the admin key")
