"""What is fuzzed: each target takes any bytes and lets no other error out than the format's own, on one line."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from format.tiny import HIDDEN, RANK, random_tensors, refile, write_adapter
from safetensors.torch import save

from unlearn_serve.errors import FormatError
from unlearn_serve.format import Manifest, read_adapter
from unlearn_serve.format.chain import chain_faults, lines_of
from unlearn_serve.format.keys import generate_key
from unlearn_serve.format.signature import Signature
from unlearn_serve.store import AuditRecord, ChannelEntry

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def _sound() -> tuple[Manifest, dict[str, bytes]]:
    with TemporaryDirectory() as folder:
        manifest = write_adapter(Path(folder))
        return manifest, {name: (Path(folder) / name).read_bytes() for name in (CONFIG, TENSORS)}


_MANIFEST, _FILES = _sound()


def manifest(data: bytes) -> None:
    """A manifest that is read is written as the same bytes."""
    assert Manifest.from_bytes(data).to_bytes() == data


def tensors(data: bytes) -> None:
    """adapter_model.safetensors, whose digest the manifest is made to name."""
    found = read_adapter(refile(_MANIFEST, tensors=data or b" "), config=_FILES[CONFIG], tensors=data or b" ")
    assert {tuple(tensor.shape) for tensor in found.w_down.values()} == {(RANK, HIDDEN)}
    assert all(tensor.isfinite().all() for tensor in (*found.w_down.values(), *found.w_up.values()))


def config(data: bytes) -> None:
    """adapter_config.json, whose digest the manifest is made to name."""
    read_adapter(refile(_MANIFEST, config=data or b" "), config=data or b" ", tensors=_FILES[TENSORS])


def documents(data: bytes) -> None:
    """A channel's entry, a signature and an audit record; one that is read is written as the same bytes."""
    refusals = 0
    for kind in (ChannelEntry, Signature, AuditRecord):
        try:
            assert kind.from_bytes(data, source="document").to_bytes() == data
        except FormatError as error:
            refusals += 1
            last = error
    if refusals == 3:
        raise last


def log(data: bytes) -> None:
    """A server's audit log: never an error, only faults."""
    for fault in chain_faults((f"{number}", line) for number, line in enumerate(lines_of(data), start=1)):
        assert "\n" not in str(fault)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "tensors": tensors,
    "config": config,
    "documents": documents,
    "log": log,
}


def seeds(name: str) -> list[bytes]:
    """Sound inputs of a target, to begin with."""
    match name:
        case "manifest":
            return [_MANIFEST.to_bytes(), _MANIFEST.model_copy(update={"evaluation": None}).to_bytes()]
        case "tensors":
            return [_FILES[TENSORS], save(random_tensors(1), metadata={"a": "b"})]
        case "config":
            return [_FILES[CONFIG], b'{"peft_type":"LORA"}']
        case "documents":
            return [Signature.of(b"", generate_key()).to_bytes(), _ENTRY]
        case "log":
            return [b'{"seq":1,"previous":null}\n{"seq":2}']
    raise KeyError(name)


def check(name: str, data: bytes) -> bool:
    """Give `data` to the target; whether it was read. Lets out whatever is a bug."""
    try:
        TARGETS[name](data)
    except FormatError as error:
        text = str(error)
        assert "\n" not in text, text
        assert len(text) < 1000, text
        text.encode()
        return False
    return True


_ENTRY = (
    b'{"action":"promote","actor":"ann","at":"2026-01-31T12:00:00Z","channel":"production","generation":1,'
    b'"previous":null,"reason":"","release":"' + b"0" * 64 + b'","restores_generation":null,'
    b'"schema":"unlearn-serve/channel/2","uncovers":[]}'
)
