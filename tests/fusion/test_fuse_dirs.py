"""Fusing folders: what is written is an ordinary adapter directory, and what does not fit is refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.adapters import write_random_adapter
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from unlearn_kernels import activate
from unlearn_serve.errors import FusionError
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion import (
    GRAMS_NAME,
    SUMS_NAME,
    GramFile,
    GramSketcher,
    RegMean,
    SiteGrams,
    SumsFile,
    fuse_dirs,
    gram_names,
    write_grams,
)
from unlearn_serve.fusion.packed import pack
from unlearn_serve.fusion.sums import sums_names
from unlearn_serve.layers import load_adapter

D = 16


def write_base(path: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=D,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def write_trained(base: Path, out: Path, seed: int, *, rank: int = 4, **options: object) -> Path:
    """A random adapter with the Grams of random data, as training leaves it."""
    write_random_adapter(base, out, seed=seed, deletion_id=f"case-{seed}", rank=rank, **options)
    manifest, tensors = read_adapter_dir(out)
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(seed))
    grams = {}
    for block, down in tensors.w_down.items():
        forgotten, retained = (
            SiteGrams(down=rows.T @ rows, up=(z := activate(rows @ down.T, tensors.activation)).T @ z)
            for rows in (x[:20], x[20:])
        )
        grams[block] = replace(forgotten, retained=retained)
    write_grams(out, grams, manifest.adapter.sites)
    return out


@pytest.fixture
def parents(base: Path, tmp_path: Path) -> list[Path]:
    return [write_trained(base, tmp_path / name, seed) for seed, name in enumerate("abc")]


def logits(base: Path, *adapters: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base)
    names = [str(i) for i in range(len(adapters))]
    for name, directory in zip(names, adapters, strict=True):
        model = load_adapter(model, directory, name)
    model.base_model.set_adapter(names)
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


@pytest.mark.parametrize("method", ["regmean", "mean", "cat"])
def test_writes_an_ordinary_adapter(base: Path, parents: list[Path], tmp_path: Path, method: str) -> None:
    out = fuse_dirs(parents, tmp_path / "deep" / "fused", method)
    manifest, tensors = read_adapter_dir(out)
    digests = sorted(read_adapter_dir(parent)[0].digest for parent in parents)
    assert manifest.deletion_ids == ("case-0", "case-1", "case-2")
    assert manifest.parents == tuple(digests)
    assert manifest.evaluation is None
    assert manifest.base_model == read_adapter_dir(parents[0])[0].base_model
    assert manifest.provenance.objective["fusion"] == method
    assert manifest.provenance.data == {}
    assert tensors.rank == (12 if method == "cat" else 4)
    config = json.loads((out / "adapter_config.json").read_bytes())
    assert config["r"] == config["lora_alpha"] == tensors.rank
    expected = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    assert {path.name for path in out.iterdir()} == expected | ({SUMS_NAME} if method == "regmean" else set())
    assert [path.name for path in out.parent.iterdir()] == ["fused"]  # no scratch folder left
    assert logits(base, out).isfinite().all()


@pytest.mark.parametrize("activation", ["identity", "relu", "silu", "gelu"])
def test_cat_in_the_model_is_all_parents_at_once(base: Path, tmp_path: Path, activation: str) -> None:
    """Ranks differ, and no Grams are needed."""
    parents = [
        write_random_adapter(
            base,
            tmp_path / str(rank),
            seed=rank,
            rank=rank,
            deletion_id=f"case-{rank}",
            activation=activation,
            scale=0.5,
        )
        for rank in (2, 5)
    ]
    fused = fuse_dirs(parents, tmp_path / "fused", "cat")
    together = logits(base, *parents)
    assert not torch.allclose(together, logits(base, parents[0]), atol=1e-3)
    # fp32 sums in another order through three blocks: a few 1e-6 of logits of order 1.
    torch.testing.assert_close(logits(base, fused), together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["regmean", "mean"])
def test_fusing_in_steps_is_fusing_at_once(parents: list[Path], tmp_path: Path, method: str) -> None:
    at_once = fuse_dirs(parents, tmp_path / "at-once", method)
    first = fuse_dirs(parents[:2], tmp_path / "first", method)
    for parent in parents[:2]:
        shutil.rmtree(parent)  # the running sums must be all that the next step needs
    in_steps = fuse_dirs([first, parents[2]], tmp_path / "in-steps", method)
    one, two = (load_file(out / "adapter_model.safetensors") for out in (at_once, in_steps))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-7)
    assert read_adapter_dir(in_steps)[0].deletion_ids == read_adapter_dir(at_once)[0].deletion_ids
    if method == "regmean":
        one, two = (load_file(out / SUMS_NAME) for out in (at_once, in_steps))
        for name in one:
            torch.testing.assert_close(one[name], two[name])


def test_running_sums_say_what_they_are_of(parents: list[Path], tmp_path: Path) -> None:
    options = RegMean(scaling="none", off_diagonal=1.0, ridge=1e-3)
    first = fuse_dirs(parents[:2], tmp_path / "first", options=options)
    out = fuse_dirs([first, parents[2]], tmp_path / "out")
    manifest, _ = read_adapter_dir(out)
    header = SumsFile(out / SUMS_NAME, manifest).header
    assert header.options == options, "it goes on as it began"
    assert manifest.provenance.objective["scaling"] == "none"
    assert header.deletion_ids == ("case-0", "case-1", "case-2")
    weights = [read_adapter_dir(parent)[0].files["adapter_model.safetensors"].sha256 for parent in parents]
    assert header.parents == tuple(sorted(weights))


def test_refuses_running_sums_that_do_not_fit(parents: list[Path], tmp_path: Path) -> None:
    a, b, c = parents
    ab, bc = fuse_dirs([a, b], tmp_path / "ab"), fuse_dirs([b, c], tmp_path / "bc")
    for dirs, options, message in (
        ([ab, a], None, "one adapter is part of both"),
        ([ab, bc], None, "one adapter is part of both"),
        ([ab, c], RegMean(ridge=1.0), r"its running sums were made with .*'ridge': 0.0001.*, expected .*'ridge': 1.0"),
    ):
        with pytest.raises(FusionError, match=message):
            fuse_dirs(dirs, tmp_path / "out", options=options)
    (ab / SUMS_NAME).unlink()
    with pytest.raises(FusionError, match=r"grams.safetensors: expected the Grams that training recorded, got no such"):
        fuse_dirs([ab, c], tmp_path / "out")
    shutil.copy(bc / SUMS_NAME, ab / SUMS_NAME)
    with pytest.raises(FusionError, match="expected the sums of the adapter beside it, got another's"):
        fuse_dirs([ab, c], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda sums, header, name: sums.pop(name), "lora_A.left' is missing; fuse the trained adapters again"),
        (lambda sums, header, name: sums.update({name: sums[name].float()}), r"expected F64 \[136\], got F32 \[136\]"),
        (lambda sums, header, name: sums[name].fill_(torch.inf), "expected finite sums, got NaN or inf"),
        (
            lambda sums, header, name: header.update(schema="unlearn-serve/fusion-sums/9"),
            "expected schema .*sums/2, got",
        ),
        (lambda sums, header, name: header.update(surprise=1), "expected the header of running sums, got"),
        (lambda sums, header, name: header.pop("parents"), "expected the header of running sums, got"),
    ],
)
def test_refuses_damaged_sums(parents: list[Path], tmp_path: Path, damage: object, message: str) -> None:
    first = fuse_dirs(parents[:2], tmp_path / "first")
    path = first / SUMS_NAME
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["unlearn_serve"])
    sums = load_file(path)
    damage(sums, header, sums_names("model.layers.1.mlp")[0])
    save_file(sums, path, metadata={"unlearn_serve": json.dumps(header)})
    with pytest.raises(FusionError, match=message):
        fuse_dirs([first, parents[2]], tmp_path / "out")
    path.write_bytes(b"no safetensors")
    with pytest.raises(FusionError, match="expected a safetensors file, got: "):
        fuse_dirs([first, parents[2]], tmp_path / "out")


@pytest.mark.parametrize("method", ["regmean", "mean", "cat"])
def test_same_bytes_whatever_the_order(parents: list[Path], tmp_path: Path, method: str) -> None:
    one, two = fuse_dirs(parents, tmp_path / "1", method), fuse_dirs(parents[::-1], tmp_path / "2", method)
    for path in one.iterdir():
        if path.name != "manifest.json":  # which tells the time
            assert path.read_bytes() == (two / path.name).read_bytes()


def test_warns_of_a_mean_over_different_seeds(
    parents: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fuse_dirs(parents, tmp_path / "regmean", "regmean")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):  # vLLM's server, once imported, leaves root's handlers at ERROR
        fuse_dirs(parents, tmp_path / "mean", "mean")
    assert "mean of adapters that started from different seeds" in caplog.text


def test_gram_file_reads_what_was_written(parents: list[Path]) -> None:
    manifest, _ = read_adapter_dir(parents[0])
    file = GramFile(parents[0] / GRAMS_NAME, manifest.adapter.sites, rank=4, hidden_size=D)
    assert list(file) == [0, 1, 2]
    assert len(file) == 3
    assert gram_names("model.layers.1.mlp") == (
        "base_model.model.model.layers.1.mlp.unlearn.lora_A.gram",
        "base_model.model.model.layers.1.mlp.unlearn.lora_B.gram",
    )
    stored = load_file(parents[0] / GRAMS_NAME)
    for name, gram in zip(gram_names("model.layers.1.mlp"), (file[1].down, file[1].up), strict=True):
        assert torch.equal(gram, gram.T)
        assert torch.equal(pack(gram), stored[name])


def sketched(grams: SiteGrams) -> SiteGrams:
    sketcher = GramSketcher(D, D)
    sketcher.add(torch.linalg.cholesky(grams.down.double() + 1e-9 * torch.eye(D)).T)  # rows with this Gram
    return SiteGrams(down=sketcher.result(), up=grams.up)


def test_sketched_grams_fuse_as_exact_ones_do(parents: list[Path], tmp_path: Path) -> None:
    exact = fuse_dirs(parents, tmp_path / "exact")
    for parent in parents[:2]:  # and exact and sketched ones together
        manifest, _ = read_adapter_dir(parent)
        grams = dict(GramFile(parent / GRAMS_NAME, manifest.adapter.sites, rank=4, hidden_size=D))
        grams = {block: replace(sketched(one), retained=sketched(one.retained)) for block, one in grams.items()}
        write_grams(parent, grams, manifest.adapter.sites)
        assert f"{gram_names('model.layers.1.mlp')[0]}.sketch" in load_file(parent / GRAMS_NAME)
    rough = fuse_dirs(parents, tmp_path / "sketched")
    one, two = (load_file(out / "adapter_model.safetensors") for out in (exact, rough))
    for name in one:
        # As many rows as directions: fp32 rounding, magnified by the solve.
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)


def test_refuses_what_does_not_fit(base: Path, parents: list[Path], tmp_path: Path) -> None:
    a, b, _ = parents
    out = tmp_path / "out"
    other_base = write_base(tmp_path / "other-base", seed=1)
    stranger = write_trained(other_base, tmp_path / "stranger", 7)
    partial = write_trained(base, tmp_path / "partial", 8, blocks=[0, 2])
    thin = write_trained(base, tmp_path / "thin", 9, rank=2)
    relu = write_trained(base, tmp_path / "relu", 10, activation="relu")
    copy = Path(shutil.copytree(a, tmp_path / "copy"))
    bare = write_random_adapter(base, tmp_path / "bare", seed=11, rank=4)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for dirs, target, method, message in (
        ([a], out, "regmean", "expected at least two adapter folders to fuse, got 1"),
        ([a, a], out, "regmean", "one adapter folder was named twice"),
        ([a, copy], out, "cat", "are the same adapter; name each once"),
        ([a, stranger], out, "cat", r"cannot fuse \S+a and \S+stranger: "),
        ([a, partial], out, "cat", r"expected the same sites, got blocks \[0, 1, 2\] and \[0, 2\]"),
        ([a, thin], out, "mean", "expected one rank, got"),
        ([a, relu], out, "cat", "expected one activation, got"),
        ([a, bare], out, "regmean", r"bare/grams.safetensors: expected the Grams that training recorded, got no such"),
        ([a, b], taken, "regmean", "expected a folder that is missing or empty, got one in use; choose another"),
        ([a, b], taken / "file", "regmean", "expected a folder that is missing or empty"),
        ([a, b], out, "median", "method: expected one of regmean, cat, mean, got 'median'"),
    ):
        with pytest.raises(FusionError, match=message) as problem:
            fuse_dirs(dirs, target, method)
        assert "\n" not in str(problem.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda grams, name: grams.pop(name), "lora_A.gram' is missing; train the adapter again"),
        (lambda grams, name: grams.update({name: torch.eye(D)}), r"expected F32 \[136\], got F32 \[16, 16\]"),
        (lambda grams, name: grams.update({name: torch.ones(136).half()}), r"expected F32 \[136\], got F16"),
        (lambda grams, name: grams[name].fill_(torch.nan), "expected a finite Gram matrix, got NaN"),
        (lambda grams, name: grams[name].neg_(), "expected a finite Gram matrix, got NaN, inf or a negative square"),
    ],
)
def test_refuses_damaged_grams(parents: list[Path], tmp_path: Path, damage: object, message: str) -> None:
    path = parents[1] / GRAMS_NAME
    grams = load_file(path)
    damage(grams, gram_names("model.layers.1.mlp")[0])
    save_file(grams, path, metadata={"schema": "unlearn-serve/grams/2"})
    with pytest.raises(FusionError, match=message):
        fuse_dirs(parents, tmp_path / "out")
    save_file(grams, path)
    with pytest.raises(FusionError, match="expected schema unlearn-serve/grams/2, got None; train the adapter again"):
        fuse_dirs(parents, tmp_path / "out")
    path.write_bytes(b"no safetensors")
    with pytest.raises(FusionError, match="expected a safetensors file, got: "):
        fuse_dirs(parents, tmp_path / "out")
