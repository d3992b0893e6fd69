"""The names of routes: what a request's `model` may say, and which release it means."""

import re
from collections.abc import Mapping, Sequence

from unlearn_serve.errors import NotEnforced, ReleaseNotFound
from unlearn_serve.format.strict_json import shown
from unlearn_serve.store import Store

MIN_DIGITS = 12
"""Digits of a digest that name a release; fewer could be guessed or collide."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(rf"[0-9a-f]{{{MIN_DIGITS},64}}")


class RouteNames:
    """`NAME@LABEL`, with NAME a name of the base model and LABEL a digest, a prefix of one or an alias; or an alias.

    Every spelling stands for one canonical name, `NAME@<64 digits>`, and only that reaches the engine: content named by
    its digest cannot go stale in a prefix cache.
    """

    def __init__(self, base_names: Sequence[str], aliases: Mapping[str, str]) -> None:
        """Use the first of `base_names` in canonical names.

        Raises:
            NotEnforced: an alias that could be taken for another name, or that names no release.
        """
        for alias, digest in aliases.items():
            if not alias or "@" in alias or alias in base_names:
                raise NotEnforced(
                    f"--route-alias: expected a name without @ other than the model's, got {shown(alias)}"
                )
            if not _PREFIX.fullmatch(digest):
                raise NotEnforced(
                    f"--route-alias {alias}: expected {MIN_DIGITS} to 64 hexadecimal digits, got {shown(digest)}"
                )
        self.aliases = dict(aliases)
        self._base_names = base_names
        self._digests: dict[str, str] = {}

    def label(self, model: str) -> str | None:
        """Return the label in `model`, None where it names no route but a base model or an ordinary adapter."""
        if model in self._base_names:
            return None
        if model in self.aliases:
            return model
        name, separator, label = model.rpartition("@")
        return label if separator and name in self._base_names else None

    def known(self, label: str) -> str | None:
        """Return the digest that `label` means where the store need not be asked (again)."""
        digits = self.aliases.get(label, label)
        return digits if _DIGEST.fullmatch(digits) else self._digests.get(digits)

    def digest(self, label: str, store: Store) -> str:
        """Return the digest that `label` means; reads the store for a prefix that it has not seen yet.

        Raises:
            ReleaseNotFound: no release has that prefix, or the label is neither digits nor an alias.
            StoreError: several releases have it, or the store cannot be read.
        """
        if (known := self.known(label)) is not None:
            return known
        digits = self.aliases.get(label, label)
        if not _PREFIX.fullmatch(digits):
            raise ReleaseNotFound(
                f"release {shown(label)}: expected an alias of this server or {MIN_DIGITS} to 64 hexadecimal digits"
            )
        self._digests[digits] = store.resolve(digits)
        return self._digests[digits]

    def canonical(self, digest: str) -> str:
        """Return the one name under which the engine knows a release."""
        return f"{self._base_names[0]}@{digest}"
