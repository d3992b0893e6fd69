"""Bad artifacts, generated from a sound one: what a malicious publisher could sign and publish, or put on a disk.

An attack changes one thing and makes the manifest name the bytes that result, so that it reaches the check it is meant
for and is not stopped by a digest.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from format.tiny import HIDDEN, RANK, SITES, canonical, edited, refile, safetensors_file

from unlearn_serve.errors import AdapterFileError, DigestError, FormatError, ManifestError
from unlearn_serve.format import Manifest, tensor_names

CONFIG, TENSORS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
DEEP = b"[" * 500_000 + b"]" * 500_000
ENDLESS_STRING = b'{"' + b'\\"' * 200_000
"""Would keep a regular expression that backtracks busy for days."""


@dataclass(frozen=True)
class Sound:
    """A sound adapter directory."""

    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> "Sound":
        return cls({name: (folder / name).read_bytes() for name in (CONFIG, TENSORS, MANIFEST)})

    def with_config(self, data: bytes) -> dict[str, bytes]:
        manifest = refile(Manifest.from_bytes(self.files[MANIFEST]), config=data)
        return {CONFIG: data, TENSORS: self.files[TENSORS], MANIFEST: manifest.to_bytes()}

    def with_tensors(self, data: bytes) -> dict[str, bytes]:
        manifest = refile(Manifest.from_bytes(self.files[MANIFEST]), tensors=data)
        return {CONFIG: self.files[CONFIG], TENSORS: data, MANIFEST: manifest.to_bytes()}

    def with_manifest(self, data: bytes) -> dict[str, bytes]:
        return {**self.files, MANIFEST: data}


@dataclass(frozen=True)
class Attack:
    """One bad artifact: its name, how to make its files, and the class of error that must refuse it."""

    name: str
    make: Callable[[Sound], dict[str, bytes]]
    error: type[FormatError]


def attacks() -> list[Attack]:
    """All of them; each name once."""
    return [*_headers(), *_layouts(), *_values(), *_configs(), *_manifest_leaves(), *_manifest_texts(), *_torn()]


NAMES = [name for site in SITES.values() for name in tensor_names(site)]
TENSOR_BYTES = RANK * HIDDEN * 4
BODY = struct.pack(f"<{RANK * HIDDEN * 4}f", *range(RANK * HIDDEN * 4))


def header() -> dict[str, Any]:
    """A sound header of the four tensors, in the order of their bytes."""
    return {
        name: {
            "dtype": "F32",
            "shape": [RANK, HIDDEN] if "lora_A" in name else [HIDDEN, RANK],
            "data_offsets": [place * TENSOR_BYTES, (place + 1) * TENSOR_BYTES],
        }
        for place, name in enumerate(NAMES)
    }


def _headers() -> Iterator[Attack]:
    """One field of one tensor's entry is another."""
    shapes = [
        [],
        [12],
        [2, 6, 1],
        [1, 12],
        [0, 6],
        [-2, -6],
        [2.0, 6],
        [True, 12],
        ["2", 6],
        None,
        {},
        "2x6",
        [2**63, 1],
    ]
    shapes += [[2**62] * 2, [2**62] * 9, [2**62] * 50_000, [[2], 6], [float(2), float(6)]]
    dtypes = ["F64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "float32", "", None, 32, ["F32"], {}, "F32\n"]
    dtypes += ["BF16", "F16", "U32", "I64"]
    offsets = [
        [0],
        [],
        [0, 48, 96],
        [48, 0],
        [-48, 0],
        ["0", 48],
        [0.0, 48.0],
        [False, 48],
        None,
        {},
        [2**63, 2**63 + 48],
    ]
    offsets += [[10**18, 10**18 + 48], [0, 47], [0, 49], [1, 49]]
    for key, values in (("shape", shapes), ("dtype", dtypes), ("data_offsets", offsets)):
        for number, value in enumerate(values):
            for place in (0, 3):
                changed = header()
                changed[NAMES[place]][key] = value
                if changed == header():
                    continue
                yield _file(f"header-{key}-{number}-{place}", safetensors_file(changed, BODY))
        for place in (1, 2):
            changed = header()
            del changed[NAMES[place]][key]
            yield _file(f"header-{key}-missing-{place}", safetensors_file(changed, BODY))
    for value in (None, [], "x", 1, {"dtype": "F32"}, {**header()[NAMES[0]], "more": 1}):
        yield _file(f"header-entry-{value!r:.20}", safetensors_file({**header(), NAMES[0]: value}, BODY))


def _layouts() -> Iterator[Attack]:
    """Which tensors there are, where their bytes lie, and the JSON around them."""
    other = ["__metadata__x", "", "../../etc/passwd", "/etc/passwd", "a\x00b", "\ud800", NAMES[0] + " ", "x" * 100_000]
    other += [NAMES[0].replace("lora_A", "lora_C"), NAMES[0].upper(), "base_model.model.lm_head.lora_A.weight"]
    for number, name in enumerate(other):
        changed = header()
        changed[name] = changed.pop(NAMES[0])
        yield _file(f"tensors-renamed-{number}", safetensors_file(changed, BODY))
        more = {**header(), name: {"dtype": "F32", "shape": [1], "data_offsets": [len(BODY), len(BODY) + 4]}}
        yield _file(f"tensors-extra-{number}", safetensors_file(more, BODY + b"\0" * 4))
        empty = {**header(), name: {"dtype": "F32", "shape": [0], "data_offsets": [len(BODY), len(BODY)]}}
        yield _file(f"tensors-extra-empty-{number}", safetensors_file(empty, BODY))
    for place, name in enumerate(NAMES):
        yield _file(
            f"tensors-missing-{place}", safetensors_file({k: v for k, v in header().items() if k != name}, BODY)
        )
        moved = header()
        moved[name]["data_offsets"] = header()[NAMES[place - 1]]["data_offsets"]
        yield _file(f"tensors-shared-bytes-{place}", safetensors_file(moved, BODY))
        twice = json.dumps(header()).encode()[:-1] + f", {json.dumps(name)}: {json.dumps(header()[name])}}}".encode()
        yield _file(f"tensors-twice-{place}", safetensors_file(twice, BODY))
    for number, value in enumerate(([], "pt", 1, None, {"a": 1}, {"a": None}, {"a": {}})):
        yield _file(f"metadata-{number}", safetensors_file({**header(), "__metadata__": value}, BODY))
    text = json.dumps(header()).encode()
    for name, data in _broken_json(text):
        yield _file(f"header-json-{name}", safetensors_file(data, BODY))
    for number, length in enumerate((0, 1, len(text) - 1, len(text) + 1, 2**22 + 1, 2**31, 2**32, 2**63, 2**64 - 1)):
        yield _file(f"header-length-{number}", safetensors_file(text, BODY, length=length))
    for name, data in (
        ("pickle", b"\x80\x04\x95"),
        ("zip", b"PK\x03\x04" * 9),
        ("elf", b"\x7fELF" * 9),
        ("zeros", b"\0" * 64),
    ):
        yield _file(f"magic-{name}", data)
    for number, body in enumerate((b"", BODY[:-1], BODY + b"\0", BODY * 2, BODY[4:])):
        yield _file(f"body-{number}", safetensors_file(header(), body))


def _values() -> Iterator[Attack]:
    """One weight of one tensor is not a number."""
    for place in range(len(NAMES)):
        for name, bits in (
            ("nan", 0x7FC00000),
            ("signalling-nan", 0x7F800001),
            ("inf", 0x7F800000),
            ("-inf", 0xFF800000),
        ):
            body = bytearray(BODY)
            struct.pack_into("<I", body, place * TENSOR_BYTES + 4 * place, bits)
            yield _file(f"value-{name}-{place}", safetensors_file(header(), bytes(body)))


def _configs() -> Iterator[Attack]:
    """adapter_config.json: another method, or an option that changes what the adapter computes."""
    changes: dict[str, list[Any]] = {
        "peft_type": ["IA3", "lora", None, ["LORA"], 1],
        "r": [1, 3, 0, -2, 2.0, "2", True, None, 10**300],
        "lora_alpha": [1, 4, 2.5, 2.0, "2", None],
        "target_modules": ["unlearn", "all-linear", [], ["unlearn", "q_proj"], ["Unlearn"], {"unlearn": 1}, None],
        "bias": ["all", "lora_only", None, True],
        "unlearn_activation": ["relu", "SILU", "", None, "__import__('os')"],
        "modules_to_save": [["lm_head"], "x"],
        "auto_mapping": [{"parent_library": "os", "base_model_class": "system"}],
        "megatron_config": [{"a": 1}],
        "rank_pattern": [{"a": 1}],
        "alpha_pattern": [{".*": 64}],
        "use_dora": [True, 1, "no"],
        "use_rslora": [True],
        "fan_in_fan_out": [True],
        "layers_to_transform": [[0], 1],
        "trust_remote_code": [True],
        "eva_config": [{"rho": 2}],
        "runtime_config": [{"ephemeral_gpu_offload": True}],
    }
    for key, values in changes.items():
        for number, value in enumerate(values):
            yield _config(f"config-{key}-{number}", lambda data, key=key, value=value: _put(data, key, value))
    for key in ("peft_type", "r", "lora_alpha", "target_modules", "bias", "unlearn_activation"):
        yield _config(f"config-{key}-missing", lambda data, key=key: _without(data, key))
    for name, _ in _broken_json(b"{}"):
        yield _config(f"config-json-{name}", lambda data, name=name: dict(_broken_json(data))[name])


def _manifest_leaves() -> Iterator[Attack]:
    """Every value of the manifest in turn is of another type, out of range, or gone; each object has a key too many."""
    # The shape of the tree is that of every manifest that `write_adapter` makes.
    leaves = [
        *((key,) for key in ("schema", "base_model", "adapter", "deletion_ids", "parents", "provenance", "files")),
        *(("base_model", key) for key in ("name", "architecture", "num_blocks", "hidden_size", "config_sha256")),
        ("base_model", "weights_sha256"),
        *(("adapter", key) for key in ("rank", "activation", "sites", "dtype", "tensors")),
        *(("adapter", "sites", key) for key in ("1", "3")),
        *(("adapter", "tensors", name) for name in NAMES),
        *(("adapter", "tensors", NAMES[0], key) for key in ("dtype", "shape")),
        *(("provenance", key) for key in ("created_at", "versions", "seed", "command", "objective", "data")),
        ("provenance", "data", "forget"),
        *(("provenance", "data", "forget", key) for key in ("sha256", "rows")),
        *(("evaluation", key) for key in ("before", "after")),
        *(("evaluation", "after", "forget", key) for key in ("accuracy", "probability", "samples")),
        *(("files", name) for name in (CONFIG, TENSORS)),
        *(("files", TENSORS, key) for key in ("sha256", "size")),
    ]
    wrong: list[tuple[str, Any]] = [("null", None), ("true", True), ("-1", -1), ("1e300", 1e300), ("nested", [[{}]])]
    for number, path in enumerate(leaves):
        where = f"{number}-{path[-1]}"
        for name, value in wrong:
            yield _manifest(f"manifest-{where}-{name}", lambda tree, path=path, value=value: _set(tree, path, value))
        if path == ("provenance", "data", "forget"):
            continue  # a manifest need not name its data
        yield _manifest(f"manifest-{where}-missing", lambda tree, path=path: _delete(tree, path))
    for path in ((), ("base_model",), ("adapter",), ("provenance",), ("evaluation",), ("files",), ("files", TENSORS)):
        yield _manifest(
            f"manifest-{'.'.join(path)}-extra", lambda tree, path=path: _set(tree, (*path, "__proto__"), {})
        )
    for number, one in enumerate(("../../x", "/etc/passwd", "a/b", "..", "a\x00b", "a\nb", "\u202eevil", "a" * 10_000)):
        edits: dict[str, Callable[[Any, Any], object]] = {
            "deletion-id": lambda tree, one: _set(tree, ("deletion_ids",), [one]),
            "parent": lambda tree, one: _set(tree, ("parents",), [one]),
            "site": lambda tree, one: _set(tree, ("adapter", "sites", "3"), one),
            "file": lambda tree, one: _set(tree, ("files", one), tree["files"][CONFIG]),
        }
        for what, edit in edits.items():
            yield _manifest(f"manifest-{what}-{number}", lambda tree, edit=edit, one=one: edit(tree, one))


def _manifest_texts() -> Iterator[Attack]:
    """manifest.json is not one canonical JSON object."""
    for name, _ in _broken_json(b"{}"):
        yield Attack(
            f"manifest-json-{name}",
            lambda sound, name=name: sound.with_manifest(dict(_broken_json(sound.files[MANIFEST]))[name]),
            ManifestError,
        )
    for name, change in (
        ("pretty", lambda data: json.dumps(json.loads(data), indent=1).encode()),
        ("line-end", lambda data: data + b"\n"),
        ("escaped", lambda data: json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()),
    ):
        yield Attack(
            f"manifest-{name}",
            lambda sound, change=change: sound.with_manifest(change(sound.files[MANIFEST])),
            ManifestError,
        )


def _torn() -> Iterator[Attack]:
    """Files that are not those that the manifest names: cut, longer, changed, exchanged."""
    for name in (CONFIG, TENSORS):
        for number, change in enumerate(
            (
                lambda data: data[:-1],
                lambda data: data[: len(data) // 2],
                lambda data: data + b" ",
                lambda data: bytes([data[0] ^ 1]) + data[1:],
                lambda data: data[:-1] + bytes([data[-1] ^ 128]),
                lambda data: b"\0" * len(data),
            )
        ):
            yield Attack(
                f"torn-{name}-{number}",
                lambda sound, name=name, change=change: {**sound.files, name: change(sound.files[name])},
                DigestError,
            )
        yield Attack(f"empty-{name}", lambda sound, name=name: {**sound.files, name: b""}, AdapterFileError)
    yield Attack(
        "exchanged",
        lambda sound: {**sound.files, CONFIG: sound.files[TENSORS], TENSORS: sound.files[CONFIG]},
        DigestError,
    )
    yield Attack("empty-manifest", lambda sound: {**sound.files, MANIFEST: b""}, AdapterFileError)
    yield Attack("huge-manifest", lambda sound: {**sound.files, MANIFEST: b" " * (2**22 + 1)}, AdapterFileError)
    yield Attack("huge-config", lambda sound: {**sound.files, CONFIG: b" " * (2**20 + 1)}, AdapterFileError)


def _broken_json(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is not one strict JSON object, from one that is."""
    inner = data[1:-1] + b"," if data != b"{}" else b""
    yield "nothing", b" "
    yield "array", b"[" + data + b"]"
    yield "two", data + data
    yield "cut", data[:-1]
    yield "mark", b"\xef\xbb\xbf" + data
    yield "utf-16", data.decode().encode("utf-16")
    yield "not-utf-8", data[:-1] + b"\xff}"
    yield "comment", data[:-1] + b"/**/}x"
    yield "nan", b"{" + inner + b'"zz":NaN}'
    yield "infinity", b"{" + inner + b'"zz":-Infinity}'
    yield "overflow", b"{" + inner + b'"zz":1e999}'
    yield "long-number", b"{" + inner + b'"zz":' + b"9" * 5000 + b"}"
    yield "twice", b"{" + inner + b'"zz":1,"zz":1}'
    yield "twice-escaped", b"{" + inner + b'"zz":1,"\\u007az":1}'
    yield "deep", b"{" + inner + b'"zz":' + b"[" * 33 + b"]" * 33 + b"}"
    yield "very-deep", b"{" + inner + b'"zz":' + DEEP + b"}"
    yield "deep-unclosed", b"{" + inner + b'"zz":' + DEEP[: len(DEEP) // 2]
    yield "endless-string", ENDLESS_STRING
    yield "endless-string-backslash", ENDLESS_STRING + b"\\"


def _file(name: str, data: bytes) -> Attack:
    return Attack(name, lambda sound: sound.with_tensors(data), AdapterFileError)


def _config(name: str, change: Callable[[bytes], bytes]) -> Attack:
    return Attack(name, lambda sound: sound.with_config(change(sound.files[CONFIG])), AdapterFileError)


def _manifest(name: str, edit: Callable[[dict[str, Any]], object]) -> Attack:
    return Attack(name, lambda sound: sound.with_manifest(edited(sound.files[MANIFEST], edit)), ManifestError)


def _put(data: bytes, key: str, value: Any) -> bytes:
    return canonical({**json.loads(data), key: value})


def _without(data: bytes, key: str) -> bytes:
    return canonical({name: value for name, value in json.loads(data).items() if name != key})


def _set(tree: Any, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def _delete(tree: Any, path: tuple[str, ...]) -> None:
    for key in path[:-1]:
        tree = tree[key]
    del tree[path[-1]]
