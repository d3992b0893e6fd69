"""What a manifest may hold: built in Python, written, read back, the same everywhere."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from format.tiny import HIDDEN, base_model, canonical, evaluation, provenance, write_adapter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unlearn_serve.errors import ManifestError
from unlearn_serve.format import (
    AdapterSpec,
    Evaluation,
    FileRef,
    GateVerdict,
    Manifest,
    Measures,
    Provenance,
    Score,
    TensorSpec,
    deletion_ids,
    one_line_errors,
    tensor_names,
    with_evaluation,
)


def test_lone_surrogate_never_gets_into_a_manifest(manifest: Manifest) -> None:
    """M19: Python can hold such a text (from argv), UTF-8 cannot."""
    with pytest.raises(ManifestError, match=r"command.1: .* unicode string"), one_line_errors("manifest"):
        Provenance(**(dict(provenance()) | {"command": ["--out", "caf\udce9"]}))
    data = manifest.to_bytes().replace(b'"--note"', b'"\\ud800"')
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


def test_time_must_be_utc_when_built_in_python() -> None:
    """M15."""
    for moment in (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))):
        with pytest.raises(ValidationError):
            Provenance(**(dict(provenance()) | {"created_at": moment}))


def test_with_evaluation_changes_only_that(manifest: Manifest) -> None:
    score = Score(accuracy=0.5, probability=0.5, samples=2)
    changed = with_evaluation(manifest, Evaluation(before={}, after={"retain": score}))
    assert changed.evaluation is not None
    assert changed.evaluation.after == {"retain": score}
    assert changed.digest != manifest.digest
    assert changed.model_copy(update={"evaluation": manifest.evaluation}) == manifest
    assert Manifest.from_bytes(changed.to_bytes()) == changed


def test_evaluation_may_be_null_and_parents_empty(manifest: Manifest) -> None:
    """M20."""
    plain = manifest.model_copy(update={"evaluation": None, "parents": ()})
    assert Manifest.from_bytes(plain.to_bytes()) == plain


def test_measures_and_gate_are_written_where_there_are_any(manifest: Manifest) -> None:
    """M21, M22: so a manifest from before they were known keeps its bytes, and its digest."""
    assert b'"gate"' not in manifest.to_bytes()
    assert b'"measures"' not in manifest.to_bytes()
    assert manifest.evaluation is not None
    more = {
        "measures": Measures(before={"privacy_leak": -1.0}, after={"forget.lm_loss": 7.5}),
        "gate": GateVerdict(sha256="0" * 64, passed=True),
    }
    for names in (("measures",), ("gate",), ("measures", "gate")):
        changed = with_evaluation(manifest, manifest.evaluation.model_copy(update={name: more[name] for name in names}))
        assert Manifest.from_bytes(changed.to_bytes()) == changed
        assert changed.digest != manifest.digest


def test_deletion_ids_are_sorted_and_checked() -> None:
    assert deletion_ids(["case-2", "case-10", "case-2"]) == ("case-10", "case-2")
    with pytest.raises(ManifestError, match="at least one id"):
        deletion_ids([])
    with pytest.raises(ManifestError, match=r"start with a letter or digit, got '\.\./x'"):
        deletion_ids(["a", "../x"])


def test_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    """R1: no hash seed, locale or order of construction gets into it."""
    digest = write_adapter(tmp_path).digest
    code = "import sys; from unlearn_serve.format import Manifest as M;"
    code += "print(M.from_bytes(sys.stdin.buffer.read()).digest)"
    data = (tmp_path / "manifest.json").read_bytes()
    found = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    assert found.stdout.decode().strip() == digest


printable = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
fractions = st.floats(0, 1)
scores = st.builds(Score, accuracy=fractions, probability=fractions, samples=st.integers(1, 10**6))
set_names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
score_sets = st.dictionaries(set_names, scores, max_size=3)
finite = st.floats(allow_nan=False, allow_infinity=False)
named = st.dictionaries(
    st.from_regex(r"([a-z][a-z0-9_-]{0,4}\.)?[a-z][a-z0-9_]{0,8}", fullmatch=True), finite, max_size=3
)
measures = st.none() | st.builds(Measures, before=named, after=named)
verdicts = st.none() | st.builds(
    GateVerdict, sha256=st.text("0123456789abcdef", min_size=64, max_size=64), passed=st.booleans()
)
ids = st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,12}", fullmatch=True), min_size=1, max_size=5)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    rank, hidden, blocks = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 20))
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    chosen = draw(st.sets(st.integers(0, blocks - 1), min_size=1))
    sites = {block: f"model.layers.{block}.mlp" for block in chosen}
    tensors = {}
    for site in sites.values():
        for name, shape in zip(tensor_names(site), ((rank, hidden), (hidden, rank)), strict=True):
            tensors[name] = TensorSpec(dtype=dtype, shape=shape)
    numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | printable
    moment = draw(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)))
    return Manifest(
        base_model=base_model(name=draw(printable), num_blocks=blocks, hidden_size=hidden),
        adapter=AdapterSpec(rank=rank, activation="relu", sites=sites, dtype=dtype, tensors=tensors),
        deletion_ids=deletion_ids(draw(ids)),
        parents=tuple(draw(st.lists(digests, unique=True, max_size=3))),
        provenance=Provenance(
            created_at=moment,
            versions=draw(st.dictionaries(printable, printable, max_size=3)),
            seed=draw(st.integers(0, 2**64 - 1)),
            command=draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=4)),
            objective=draw(st.dictionaries(printable, numbers, max_size=4)),
            data={},
        ),
        evaluation=draw(
            st.none() | st.builds(Evaluation, before=score_sets, after=score_sets, measures=measures, gate=verdicts)
        ),
        files={
            "adapter_config.json": FileRef(sha256=draw(digests), size=1),
            "adapter_model.safetensors": FileRef(sha256=draw(digests), size=draw(st.integers(1, 2**32))),
        },
    )


@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    """J6: what is written reads back equal, in the same bytes, and they are canonical by the rule's own text."""
    data = manifest.to_bytes()
    back = Manifest.from_bytes(data)
    assert back == manifest
    assert back.to_bytes() == data == canonical(json.loads(data))
    assert back.digest == manifest.digest


def test_fixtures_are_what_the_tests_assume(manifest: Manifest) -> None:
    assert manifest.base_model.hidden_size == HIDDEN
    assert manifest.evaluation == evaluation()
