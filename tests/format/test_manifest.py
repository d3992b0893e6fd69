"""manifest.json: each rule's own refusal, in one line, and the round trip of what is allowed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from format.tiny import SITES, canonical, edited

from unlearn_serve.errors import ManifestError
from unlearn_serve.format import (
    Manifest,
    tensor_names,
)
from unlearn_serve.format.manifest import MAX_MANIFEST_BYTES

DOWN, UP = tensor_names(SITES[3])
ELSEWHERE = "base_model.model.model.layers.2.mlp.unlearn.lora_A.weight"


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that puts `value` at `path`, keys joined by '>'."""

    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split(">")
        for key in parents:
            document = document[key]
        document[last] = value

    return edit


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split(">")
        for key in parents:
            document = document[key]
        del document[last]

    return edit


def move_site(path: str) -> Callable[[dict[str, Any]], None]:
    """Block 3's site at another path, its tensors moved along."""

    def edit(document: dict[str, Any]) -> None:
        adapter = document["adapter"]
        adapter["sites"]["3"] = path
        for old, new in zip((DOWN, UP), tensor_names(path), strict=True):
            adapter["tensors"][new] = adapter["tensors"].pop(old)

    return edit


SHA = "0" * 64
FILES = "adapter_config.json"
REFUSED = [
    pytest.param(put("colour", "red"), "colour: unknown key", id="J7-unknown"),
    pytest.param(put("adapter>alpha", 16), "adapter.alpha: unknown key", id="J7-unknown-inside"),
    pytest.param(drop("parents"), "parents: missing", id="J7-missing"),
    pytest.param(drop("evaluation"), "evaluation: missing", id="J7-missing-nullable"),
    pytest.param(put("adapter>rank", "2"), r"adapter.rank: input should be a valid integer, got '2'", id="J8-text"),
    pytest.param(put("adapter>rank", True), r"adapter.rank: input should be a valid integer, got True", id="J8-bool"),
    pytest.param(put("adapter>rank", 2.0), r"adapter.rank: input should be a valid integer, got 2.0", id="J8-float"),
    pytest.param(
        put("schema", "unlearn-serve/manifest/2"), "schema: expected 'unlearn-serve/manifest/1', got .*/2'", id="M1"
    ),
    pytest.param(drop("schema"), "schema: expected 'unlearn-serve/manifest/1', got no schema", id="M1-missing"),
    pytest.param(put("base_model>name", ""), "base_model.name: string should have at least 1", id="M2-empty-name"),
    pytest.param(put("base_model>name", "a\nb"), "base_model.name: expected one line of printable", id="M2-two-lines"),
    pytest.param(put("base_model>num_blocks", 0), "base_model.num_blocks: input should be greater", id="M2-blocks"),
    pytest.param(put("base_model>hidden_size", 2**21), "base_model.hidden_size: input should be less", id="M2-hidden"),
    pytest.param(
        put("base_model>weights_sha256", "A" * 64), "base_model.weights_sha256: string should match", id="M2-digest"
    ),
    pytest.param(put("adapter>rank", 0), "adapter.rank: input should be greater than or equal to 1", id="M3-zero"),
    pytest.param(put("adapter>rank", 1025), "adapter.rank: input should be less than or equal to 1024", id="M3-large"),
    pytest.param(put("adapter>activation", "tanh"), "adapter.activation: input should be 'identity', 'relu'", id="M4"),
    pytest.param(put("adapter>dtype", "float64"), "adapter.dtype: input should be 'float32', 'bfloat16'", id="M5"),
    pytest.param(put("adapter>sites", {}), "adapter.sites: dictionary should have at least 1 item", id="M6-none"),
    *(
        pytest.param(move_site(path), r"adapter.sites.3: string should match pattern", id=f"M6-{path[:16]}")
        for path in ("../3", "model/3", "model..3", ".3", "model.3.", "model.3\n", "modèle.3", "a b.3", "..\\3")
    ),
    pytest.param(move_site("m." * 130 + "3"), "adapter.sites.3: string should have at most 256", id="M6-long"),
    pytest.param(put("adapter>sites>-1", "a.1"), r"adapter.sites.-1: input should be greater", id="M7-negative"),
    pytest.param(
        put("base_model>num_blocks", 3), "adapter.sites: block 3, but the base model has 3", id="M7-beyond-base"
    ),
    pytest.param(
        move_site("model.layers.2.mlp"), "block 3 is at 'model.layers.2.mlp', a path without that block's", id="M8"
    ),
    pytest.param(move_site("model.mlp"), "block 3 is at 'model.mlp', a path without that block's", id="M8-no-number"),
    pytest.param(
        put(f"adapter>tensors>{ELSEWHERE}", {"dtype": "float32", "shape": [2, 6]}),
        f"adapter: tensors: '{ELSEWHERE}' belongs to none of the sites",
        id="M9-extra",
    ),
    pytest.param(
        put("adapter>tensors>../../etc/passwd", {"dtype": "float32", "shape": [2, 6]}),
        r"adapter: tensors: '../../etc/passwd' belongs to none of the sites",
        id="M9-traversal",
    ),
    pytest.param(drop(f"adapter>tensors>{UP}"), f"adapter: tensors: '{UP}' is missing", id="M9-missing"),
    pytest.param(
        put(f"adapter>tensors>{UP}>dtype", "float16"), f"'{UP}' has dtype float16, the adapter's is float32", id="M10"
    ),
    pytest.param(
        put(f"adapter>tensors>{DOWN}>shape", [6, 2]),
        rf"'{DOWN}' has shape \(6, 2\), rank 2 and hidden size 6 imply \(2, 6\)",
        id="M11-transposed",
    ),
    pytest.param(put("adapter>rank", 4), r"has shape \(2, 6\), rank 4 and hidden size 6 imply \(4, 6\)", id="M11-rank"),
    pytest.param(
        put("base_model>hidden_size", 8), r"rank 2 and hidden size 8 imply \(2, 8\)", id="M11-other-hidden-size"
    ),
    pytest.param(put(f"adapter>tensors>{UP}>shape", [6, 2, 1]), "shape: tuple should have at most 2", id="M11-3d"),
    pytest.param(put("deletion_ids", []), "deletion_ids: tuple should have at least 1 item", id="M12-none"),
    pytest.param(put("deletion_ids", ["a", "a"]), "deletion_ids: expected each once, got 'a' twice", id="M12-twice"),
    pytest.param(
        put("deletion_ids", ["b", "a"]), "deletion_ids: expected sorted ids, got 'b' before 'a'", id="M12-unsorted"
    ),
    *(
        pytest.param(put("deletion_ids", [one]), "deletion_ids.0: string should match pattern", id=f"M12-{one[:8]!a}")
        for one in ("", "../x", "a b", "a/b", ".a", "é", "a\n", "x" * 129)
    ),
    pytest.param(put("parents", ["../" + SHA[3:]]), "parents.0: string should match pattern", id="M13-traversal"),
    pytest.param(put("parents", [SHA, "1" * 64, SHA]), f"parents: expected each once, got '{SHA}' twice", id="M13"),
    pytest.param(drop(f"files>{FILES}"), f"files: '{FILES}' is missing", id="M14-missing"),
    pytest.param(
        put("files>../../x", {"sha256": SHA, "size": 1}),
        r"files...*x: input should be 'adapter_config.json' or 'adapter_model.safetensors'",
        id="M14-traversal",
    ),
    pytest.param(
        put("files>grams.safetensors", {"sha256": SHA, "size": 1}),
        "files.grams.safetensors: input should",
        id="M14-grams",
    ),
    pytest.param(put(f"files>{FILES}>size", 2**20 + 1), "'adapter_config.json' has 1048577 bytes", id="M14-too-large"),
    pytest.param(put(f"files>{FILES}>size", 0), "size: input should be greater than or equal to 1", id="M14-empty"),
    pytest.param(put(f"files>{FILES}>sha256", SHA[1:]), "sha256: string should match pattern", id="M14-digest"),
    pytest.param(
        put("provenance>created_at", "2026-01-31T12:00:00+02:00"), "created_at: expected a time in UTC", id="M15-zone"
    ),
    pytest.param(put("provenance>created_at", "2026-01-31T12:00:00"), "should have timezone info", id="M15-naive"),
    pytest.param(put("provenance>seed", -1), "provenance.seed: input should be greater", id="M16-negative"),
    pytest.param(put("provenance>seed", 2**64), "provenance.seed: input should be less", id="M16-large"),
    pytest.param(
        put("provenance>data>forget", {"sha256": SHA, "rows": 1, "text": ["who is A?"]}),
        "provenance.data.forget.text: unknown key",
        id="M17",
    ),
    pytest.param(put("evaluation>after>Forget!", {}), "evaluation.after.Forget!: string should match", id="M18-name"),
    pytest.param(
        put("evaluation>after>forget>accuracy", 1.5), "forget.accuracy: input should be less than or equal", id="M18"
    ),
    pytest.param(
        put("evaluation>after>forget>samples", 0), "forget.samples: input should be greater than or", id="M18-samples"
    ),
    pytest.param(
        put("evaluation>measures", {"before": {}, "after": {"forget.": 1.0}}),
        "after.forget.: string should match",
        id="M21-name",
    ),
    pytest.param(put("evaluation>measures", {"before": {}}), "evaluation.measures.after: missing", id="M21-phase"),
    pytest.param(put("evaluation>measures", None), "expected canonical JSON", id="M21-null"),
    pytest.param(
        put("evaluation>gate", {"sha256": SHA, "passed": 1}), "gate.passed: input should be a valid boolean", id="M22"
    ),
    pytest.param(put("evaluation>gate", {"passed": True}), "evaluation.gate.sha256: missing", id="M22-digest"),
    pytest.param(put("provenance>versions", {"torch": "2\nlive"}), "expected one line of printable", id="M19-version"),
    pytest.param(
        put("provenance>objective", {"name": "npo\nlive"}), "objective: expected 'name' to be one printable", id="M19"
    ),
]


@pytest.mark.parametrize(("edit", "message"), REFUSED)
def test_refused_in_one_line_of_its_own(
    manifest: Manifest, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = edited(manifest.to_bytes(), edit)
    with pytest.raises(ManifestError, match=rf"^some/manifest.json: .*{message}") as error:
        Manifest.from_bytes(data, source="some/manifest.json")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data + b"\n", id="J6-line-end"),
        pytest.param(lambda data: json.dumps(json.loads(data), sort_keys=True).encode(), id="J6-spaces"),
        pytest.param(lambda data: canonical(json.loads(data)).replace("ü".encode(), b"\\u00fc"), id="J6-escaped"),
        pytest.param(lambda data: data.replace(b"0.75", b"7.5e-1"), id="J6-number"),
        pytest.param(lambda data: data.replace(b'"1":"model', b'"01":"model'), id="J6-block-index"),
        pytest.param(lambda data: data.replace(b"00.123456Z", b"00.123456+00:00"), id="J6-time"),
        pytest.param(
            lambda data: json.dumps(
                dict(reversed(json.loads(data).items())), separators=(",", ":"), ensure_ascii=False
            ).encode(),
            id="J6-order",
        ),
    ],
)
def test_other_bytes_for_the_same_content_are_refused(manifest: Manifest, change: Callable[[bytes], bytes]) -> None:
    data = change(manifest.to_bytes())
    assert data != manifest.to_bytes()
    with pytest.raises(ManifestError, match=r"expected canonical JSON"):
        Manifest.from_bytes(data)


def test_nonfinite_number_and_duplicate_key_are_refused(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    with pytest.raises(ManifestError, match="finite"):
        Manifest.from_bytes(data.replace(b"0.75", b"1e999"))
    with pytest.raises(ManifestError, match="key 'parents' occurs twice"):
        Manifest.from_bytes(data.replace(b'"parents":[]', b'"parents":[],"parents":[]'))


def test_oversized_manifest_is_refused_unread() -> None:
    with pytest.raises(ManifestError, match="expected at most 4194304 bytes of JSON, got 4194305"):
        Manifest.from_bytes(b" " * (MAX_MANIFEST_BYTES + 1))


def test_says_how_many_more_problems_there_are(manifest: Manifest) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["one"] = document["two"] = 1
        del document["parents"]

    with pytest.raises(ManifestError, match=r"parents: missing \(and 2 more problems\)$"):
        Manifest.from_bytes(edited(manifest.to_bytes(), edit))
