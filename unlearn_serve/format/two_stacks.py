"""The manifest of an adapter of an encoder-decoder model: kept beside it, never published.

Its schema is one of its own, so that whatever reads manifests of releases refuses it (M1): the engine serves decoders
only. It differs from manifest/1 in its sites alone: they are counted through both stacks, those of the encoder first,
and `base_model.num_blocks` counts the blocks of both. See docs/format.md, section 2a.
"""

import re
from typing import Final, Literal

from pydantic import Field

from unlearn_serve.format.manifest import AdapterSpec, Manifest

TWO_STACKS_SCHEMA: Final = "unlearn-serve/two-stacks/1"
_SITE = re.compile(r"(?:.*\.)?(encoder|decoder)\.block\.(\d+)(?:\.[A-Za-z0-9_]+)+")


class TwoStackSpec(AdapterSpec):
    """What the adapter files hold; sites by their number through both stacks."""

    def check_sites(self) -> None:
        """Hold sites to M22 and M23: each names stack and block, in one order, so that no two share a site."""
        seen: list[tuple[bool, int]] = []
        for number, site in sorted(self.sites.items()):
            match = _SITE.fullmatch(site)
            if match is None:  # M22
                raise ValueError(f"sites: {number} is at {site!r}, a path without encoder.block.N or decoder.block.N")
            seen.append((match[1] == "decoder", int(match[2])))
        if seen != sorted(set(seen)):  # M23
            raise ValueError("sites: expected the encoder's blocks, then the decoder's, each once and in order")


class TwoStackManifest(Manifest):
    """manifest.json of an adapter with sites in an encoder and a decoder."""

    schema_: Literal["unlearn-serve/two-stacks/1"] = Field(  # type: ignore[assignment]  # another name on purpose
        default=TWO_STACKS_SCHEMA, alias="schema"
    )
    adapter: TwoStackSpec
