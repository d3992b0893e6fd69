"""`eval` and `publish --gate` on a random tiny model: what they write, and how they refuse."""

import json
from pathlib import Path

import pytest
from data.tiny_tokenizer import byte_tokenizer
from support.adapters import write_random_adapter
from support.command_line import Run
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_serve.store import Store


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=2)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("forget", "retain", "facts", "more")}
    for name, path in paths.items():
        rows = [{"prompt": f"{name} {n}?", "completion": f" {n}", "perturbed_answer": [" x"]} for n in (1, 2)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture
def evaluated(run: Run, base: Path, files: dict[str, Path], tmp_path: Path) -> Path:
    adapter = write_random_adapter(base, tmp_path / "adapter")
    done = run(
        *("eval", "--model", base, "--adapter", adapter, "--forget", files["forget"], "--retain", files["retain"]),
        *("--general", files["facts"], "--general", files["more"], "--max-new-tokens", 3),
        *("--json", tmp_path / "out.json", "--report", tmp_path / "out.html"),
    )
    assert done.code == 0, done.stderr
    assert "forget.extraction_strength" in done.stdout
    return adapter


def test_eval_writes_scores_json_and_report(evaluated: Path, tmp_path: Path) -> None:
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["sets"]) == ["forget", "retain", "general", "general2"]
    assert found["after"]["forget"].keys() == {"accuracy", "probability", "samples"}
    assert found == json.loads((evaluated / "evaluation.json").read_text())
    assert "Truth ratios" in (tmp_path / "out.html").read_text()


def test_publish_through_a_gate(run: Run, evaluated: Path, tmp_path: Path) -> None:
    store, gate = tmp_path / "store", tmp_path / "gate.yaml"
    before = (evaluated / "manifest.json").read_bytes()
    gate.write_text("schema: unlearn-serve/gate/1\nthresholds: {forget.samples: {min: 3}, forget.accuracy: {max: 1}}\n")
    refused = run("publish", evaluated, "--store", store, "--gate", gate)
    assert refused.code == 1
    assert "(GateError)" in refused.stderr
    assert "forget.samples: expected at least 3, got 2" in refused.stderr.replace("\n", " ")
    assert (evaluated / "manifest.json").read_bytes() == before, "a refused adapter stays as it is"
    assert not store.exists()

    gate.write_text("schema: unlearn-serve/gate/1\nthresholds: {forget.samples: {min: 2}}\n")
    done = run("publish", evaluated, "--store", store, "--gate", gate)
    assert done.code == 0, done.stderr
    again = run("publish", evaluated, "--store", store, "--gate", gate)
    assert again.stdout == done.stdout, "the same release, not another one"
    manifest = Store.open(str(store)).load_manifest(done.stdout.strip())
    assert manifest.evaluation is not None
    assert manifest.evaluation.gate is not None
    assert manifest.evaluation.gate.passed
    assert "forget.lm_loss" in manifest.evaluation.measures.after


def test_an_adapter_that_was_not_evaluated_passes_no_gate(run: Run, base: Path, tmp_path: Path) -> None:
    adapter = write_random_adapter(base, tmp_path / "adapter")
    gate = tmp_path / "gate.yaml"
    gate.write_text("schema: unlearn-serve/gate/1\nthresholds: {forget.samples: {min: 2}}\n")
    done = run("publish", adapter, "--store", tmp_path / "store", "--gate", gate)
    assert done.code == 1
    assert "run unlearn-serve eval" in done.stderr


def test_eval_options_that_do_not_go_together(run: Run, base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    sets = ("--model", base, "--forget", files["forget"])
    done = run("eval", *sets, "--adapter", tmp_path, "--url", "http://127.0.0.1:9")
    assert (done.code, "expected none with --url" in done.stderr) == (1, True)
    done = run("eval", *sets, "--set", f"forget={files['more']}")
    assert (done.code, "got 'forget' twice" in done.stderr) == (1, True)
    done = run("eval", *sets, "--url", "http://127.0.0.1:9")
    assert (done.code, "no answer from /v1/models" in done.stderr) == (1, True)
