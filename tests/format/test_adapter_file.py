"""The adapter files: sound ones load bit for bit, and each way to break them has a refusal of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from format.tiny import HIDDEN, RANK, SITES, load_with, random_tensors, write_adapter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from unlearn_serve.errors import AdapterFileError, DigestError, FormatError, ManifestError
from unlearn_serve.format import (
    Manifest,
    describe_adapter_dir,
    read_adapter,
    read_adapter_dir,
    tensor_names,
    write_manifest,
)
from unlearn_serve.format.adapter_file import _is_finite

DOWN, UP = tensor_names(SITES[3])
OTHER_DOWN, OTHER_UP = tensor_names(SITES[1])
BYTES = RANK * HIDDEN * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sound_adapter_loads_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    written = write_adapter(tmp_path, dtype=dtype)
    manifest, tensors = read_adapter_dir(tmp_path)
    assert manifest == written
    assert (tensors.rank, tensors.activation, list(tensors.w_down)) == (RANK, "silu", [1, 3])
    expected = random_tensors(dtype=dtype)
    for block, site in SITES.items():
        down, up = tensor_names(site)
        assert tensors.w_down[block].dtype == dtype
        assert torch.equal(tensors.w_down[block], expected[down])
        assert torch.equal(tensors.w_up[block], expected[up])


def with_tensors(edit: Callable[[dict[str, Tensor]], object]) -> bytes:
    tensors = random_tensors()
    edit(tensors)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def poisoned(value: float) -> Tensor:
    tensor = torch.zeros(RANK, HIDDEN)
    tensor[1, 4] = value
    return tensor


WRONG_TENSORS = [
    pytest.param(put("evil", torch.zeros(1)), r"extra tensor 'evil'", id="A10"),
    pytest.param(put("../../etc/passwd", torch.zeros(1)), r"extra tensor '../../etc/passwd'", id="A10-traversal"),
    pytest.param(put("x" * 5000, torch.zeros(1)), r"extra tensor 'x+\.\.\.", id="A10-long-name"),
    pytest.param(lambda tensors: tensors.pop(UP), rf"missing tensor '{UP}' that the manifest lists \(1\)", id="A11"),
    pytest.param(lambda tensors: tensors.clear(), r"missing tensor .* \(4\)", id="A11-all"),
    pytest.param(
        put(UP, torch.zeros(HIDDEN, RANK, dtype=torch.float16)),
        "has dtype float16, the manifest says float32",
        id="A12",
    ),
    pytest.param(
        put(UP, torch.zeros(HIDDEN, RANK, dtype=torch.float64)),
        "expected dtype float32, bfloat16, float16, got F64",
        id="A12-float64",
    ),
    pytest.param(put(UP, torch.zeros(HIDDEN, RANK, dtype=torch.int32)), "expected dtype .* got I32", id="A12-int"),
    pytest.param(put(UP, torch.zeros(RANK, HIDDEN)), r"has shape \(2, 6\), the manifest says \(6, 2\)", id="A13"),
    pytest.param(put(UP, torch.zeros(HIDDEN, RANK, 1)), r"has shape \(6, 2, 1\), the manifest", id="A13-3d"),
    pytest.param(put(UP, torch.zeros(0)), r"has shape \(0,\), the manifest says \(6, 2\)", id="A13-empty"),
    pytest.param(put(DOWN, poisoned(float("nan"))), rf"'{DOWN}': expected finite values, got NaN or inf", id="A14-nan"),
    pytest.param(put(DOWN, poisoned(float("inf"))), "expected finite values, got NaN or inf", id="A14-inf"),
    pytest.param(put(DOWN, poisoned(float("-inf"))), "expected finite values, got NaN or inf", id="A14-minus-inf"),
]


@pytest.mark.parametrize(("edit", "message"), WRONG_TENSORS)
def test_wrong_tensors_are_refused(adapter: Path, edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises(AdapterFileError, match=rf"^adapter_model.safetensors: .*{message}") as error:
        load_with(adapter, tensors=with_tensors(edit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nan_is_found_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """A14."""
    write_adapter(tmp_path, dtype=dtype)
    tensors = random_tensors(dtype=dtype)
    tensors[DOWN][0, 0] = float("nan")
    with pytest.raises(AdapterFileError, match="got NaN or inf"):
        load_with(tmp_path, tensors=save(tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_16_bits_is_judged_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    judged = [_is_finite(number) for number in every.split(1)]
    assert judged == torch.isfinite(every).tolist()


def test_a_files_size_is_checked_first(adapter: Path) -> None:
    """A1."""
    with (adapter / "adapter_model.safetensors").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(
        DigestError, match=r"adapter_model.safetensors: expected \d+ bytes as the manifest says, got \d+"
    ):
        read_adapter_dir(adapter)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(["config", "tensors"]))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, name: str) -> None:
    """A2."""
    directory = tmp_path_factory.getbasetemp() / "flipped"
    manifest = write_adapter(directory)
    contents = {
        "config": (directory / "adapter_config.json").read_bytes(),
        "tensors": (directory / "adapter_model.safetensors").read_bytes(),
    }
    data = bytearray(contents[name])
    data[int(place * len(data))] ^= 1 << bit
    with pytest.raises(DigestError, match=r"expected sha256 [0-9a-f]{64} as the manifest says, got"):
        read_adapter(manifest, **(contents | {name: bytes(data)}))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_format_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "arbitrary"
    write_adapter(directory)
    for content in (data, len(data).to_bytes(8, "little") + data):
        (directory / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(FormatError):
            describe_adapter_dir(directory)


def test_missing_files_are_named_with_the_way_out(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match=r"adapter_config.json: expected a file of an adapter.*train --out"):
        read_adapter_dir(adapter)
    with pytest.raises(AdapterFileError, match=r"manifest.json: expected a file of an adapter directory"):
        read_adapter_dir(adapter / "nowhere")


def test_describe_names_tensors_and_refuses_what_cannot_be_described(adapter: Path) -> None:
    files, tensors = describe_adapter_dir(adapter)
    assert files["adapter_config.json"].size == (adapter / "adapter_config.json").stat().st_size
    assert (tensors[DOWN].dtype, tensors[DOWN].shape) == ("float32", (RANK, HIDDEN))
    (adapter / "adapter_model.safetensors").write_bytes(save({"a": torch.zeros(3)}))
    with pytest.raises(AdapterFileError, match=r"'a': expected 2 dimensions, got shape \(3,\)"):
        describe_adapter_dir(adapter)


def test_write_manifest_replaces_whole_and_leaves_nothing_else(adapter: Path) -> None:
    manifest = Manifest.from_bytes((adapter / "manifest.json").read_bytes())
    before = sorted(path.name for path in adapter.iterdir())
    write_manifest(adapter, manifest.model_copy(update={"evaluation": None}))
    assert sorted(path.name for path in adapter.iterdir()) == before
    assert read_adapter_dir(adapter)[0].evaluation is None


@pytest.mark.parametrize("name", ["manifest.json", "adapter_config.json", "adapter_model.safetensors"])
def test_empty_files_are_named(adapter: Path, name: str) -> None:
    (adapter / name).write_bytes(b"")
    with pytest.raises(AdapterFileError, match=rf"{name}: expected content, got an empty file"):
        read_adapter_dir(adapter)


def test_manifest_of_the_directory_is_read_strictly(adapter: Path) -> None:
    (adapter / "manifest.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"manifest.json: schema: expected"):
        read_adapter_dir(adapter)
