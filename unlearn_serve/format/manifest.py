"""manifest.json: what an adapter is, which base model it belongs to, which requests it covers, where it came from.

The rules are written out in docs/format.md; the numbers there (M1, M2, ...) are those in the comments here.
"""

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from unlearn_serve.errors import ManifestError
from unlearn_serve.format.fields import (
    DeletionId,
    Line,
    MeasureName,
    NonEmptyLine,
    SetName,
    Sha256,
    SitePath,
    Text,
    UtcTime,
)
from unlearn_serve.format.strict_json import StrictModel

SCHEMA: Final = "unlearn-serve/manifest/1"
MAX_MANIFEST_BYTES = 4 * 2**20

Activation = Literal["identity", "relu", "silu", "gelu"]
"""Activations of the format; the same names as `unlearn_kernels.ACTIVATIONS`."""

DType = Literal["float32", "bfloat16", "float16"]

FileName = Literal["adapter_config.json", "adapter_model.safetensors"]
FILE_NAMES: tuple[FileName, ...] = get_args(FileName)
"""The files of a release beside its manifest, in the order in which they are published."""

MAX_FILE_BYTES: Mapping[str, int] = {"adapter_config.json": 2**20, "adapter_model.safetensors": 4 * 2**30}
"""Largest file of each name: an adapter fits into one conditional put of every object store."""


def tensor_names(site: str) -> tuple[str, str]:
    """The keys of one site's W_down and W_up in adapter_model.safetensors, as PEFT spells them."""
    prefix = f"base_model.model.{site}.unlearn"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


class BaseModelRef(StrictModel):
    """The base model an adapter belongs to; `name` is informative, the rest is compared."""

    name: NonEmptyLine
    architecture: NonEmptyLine
    num_blocks: Annotated[int, Field(ge=1, le=10_000)]
    hidden_size: Annotated[int, Field(ge=1, le=2**20)]
    config_sha256: Sha256
    weights_sha256: Sha256


class TensorSpec(StrictModel):
    """Type and shape of one tensor."""

    dtype: DType
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class AdapterSpec(StrictModel):
    """What the adapter files hold: rank r, activation, sites by block index, and every tensor."""

    rank: Annotated[int, Field(ge=1, le=1024)]
    activation: Activation
    sites: Annotated[dict[Annotated[int, Field(ge=0)], SitePath], Field(min_length=1)]
    dtype: DType
    tensors: dict[Text, TensorSpec]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.check_sites()
        implied = {name for site in self.sites.values() for name in tensor_names(site)}
        if extra := sorted(self.tensors.keys() - implied):  # M9
            raise ValueError(f"tensors: {extra[0]!r} belongs to none of the sites ({len(extra)} such)")
        if missing := sorted(implied - self.tensors.keys()):
            raise ValueError(f"tensors: {missing[0]!r} is missing, its site is listed ({len(missing)} such)")
        for name, spec in self.tensors.items():
            if spec.dtype != self.dtype:  # M10
                raise ValueError(f"tensors: {name!r} has dtype {spec.dtype}, the adapter's is {self.dtype}")
        return self

    def check_sites(self) -> None:
        """Hold each site to its block, so that no two blocks can share one.

        Raises:
            ValueError: a path without its block's index.
        """
        for block, site in self.sites.items():
            numbers = [part for part in site.split(".") if part.isdecimal()]
            if not numbers or numbers[-1] != str(block):  # M8
                raise ValueError(f"sites: block {block} is at {site!r}, a path without that block's index")


class DataRef(StrictModel):
    """A data set by the digest of its bytes and its number of rows; never the data itself."""

    sha256: Sha256
    rows: Annotated[int, Field(ge=0)]


class Provenance(StrictModel):
    """How the adapter came to be: enough to train it again, nothing of what was to be forgotten."""

    created_at: UtcTime
    versions: dict[Line, Line]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    command: list[Text]
    objective: dict[Line, float | int | str | bool]
    data: dict[SetName, DataRef]

    @model_validator(mode="after")
    def _writable(self) -> Self:
        for name, value in self.objective.items():
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"objective: expected {name!r} to be one printable line, got {value[:60]!r}")
        return self


class Score(StrictModel):
    """One question set's result: accuracy and mean probability of the gold answer, over `samples` questions."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    probability: Annotated[float, Field(ge=0, le=1)]
    samples: Annotated[int, Field(ge=1)]


class GateVerdict(StrictModel):
    """What a gate said of the evaluation: the gate by the digest of its file's bytes."""

    sha256: Sha256
    passed: bool


class Measures(StrictModel):
    """Further measures by name, before and after unlearning; see docs/evaluation.md."""

    before: dict[MeasureName, float]
    after: dict[MeasureName, float]


def _none(value: object) -> bool:
    return value is None


class Evaluation(StrictModel):
    """Scores by set name (forget, retain, holdout, ...) before and after unlearning.

    `measures` and `gate` are written only where there are any: manifests from before they were known stay as they are.
    """

    before: dict[SetName, Score]
    after: dict[SetName, Score]
    measures: Measures | None = Field(default=None, exclude_if=_none)  # M21
    gate: GateVerdict | None = Field(default=None, exclude_if=_none)  # M22


class FileRef(StrictModel):
    """A file of the release by its bytes."""

    sha256: Sha256
    size: Annotated[int, Field(ge=1)]


class Manifest(StrictModel):
    """The content of manifest.json; the SHA-256 of its canonical bytes names the release."""

    schema_: Literal["unlearn-serve/manifest/1"] = Field(default=SCHEMA, alias="schema")
    base_model: BaseModelRef
    adapter: AdapterSpec
    deletion_ids: Annotated[tuple[DeletionId, ...], Field(min_length=1)]
    parents: tuple[Sha256, ...]
    provenance: Provenance
    evaluation: Evaluation | None
    files: dict[FileName, FileRef]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for one, two in pairwise(self.deletion_ids):  # M12
            if one == two:
                raise ValueError(f"deletion_ids: expected each once, got {one!r} twice")
            if one > two:
                raise ValueError(f"deletion_ids: expected sorted ids, got {one!r} before {two!r}")
        for one, two in pairwise(sorted(self.parents)):  # M13
            if one == two:
                raise ValueError(f"parents: expected each once, got {one!r} twice")
        for name in FILE_NAMES:  # M14
            if name not in self.files:
                raise ValueError(f"files: {name!r} is missing")
            if self.files[name].size > MAX_FILE_BYTES[name]:
                raise ValueError(f"files: {name!r} has {self.files[name].size} bytes, at most {MAX_FILE_BYTES[name]}")
        self._check_shapes()
        return self

    def _check_shapes(self) -> None:
        r, d = self.adapter.rank, self.base_model.hidden_size
        for block, site in self.adapter.sites.items():
            if block >= self.base_model.num_blocks:  # M7
                raise ValueError(f"adapter.sites: block {block}, but the base model has {self.base_model.num_blocks}")
            for name, implied in zip(tensor_names(site), ((r, d), (d, r)), strict=True):  # M11
                if (shape := self.adapter.tensors[name].shape) != implied:
                    raise ValueError(
                        f"adapter.tensors: {name!r} has shape {shape}, rank {r} and hidden size {d} imply {implied}"
                    )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "manifest.json") -> Self:
        """Parse the bytes of a manifest; `source` is how messages name it.

        Raises:
            ManifestError: one line: where, expected, got.
        """
        return cls.read(data, source=source, max_bytes=MAX_MANIFEST_BYTES, error=ManifestError)

    @property
    def digest(self) -> str:
        """The release's name: SHA-256, in hexadecimal, of `to_bytes()`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def with_evaluation(manifest: Manifest, evaluation: Evaluation) -> Manifest:
    """A copy of `manifest` that carries `evaluation`: another manifest, so another digest."""
    return manifest.model_copy(update={"evaluation": evaluation})
