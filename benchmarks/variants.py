"""What is compared: servers, and the variants that are measured on them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.inputs import LINEARS, RANK, Inputs
from benchmarks.load import BATCHES, CELLS, Cell
from benchmarks.servers import NAME, ServerSpec

PLAIN = "plain"
ROUTE_SLOTS = 8
OVER_SLOTS = 12
FEW_ROUNDS = 2
CHANNEL = "serving"
DEFAULT_SEED = 1
_FIRST_ROUTE_SEED = 100


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of the comparison."""

    name: str
    what: str
    server: str
    """The server it is measured on, or the offline peer of that name."""
    models: tuple[str, ...] = (NAME,)
    """Names that requests ask for, in turn."""
    cells: tuple[Cell, ...] = CELLS
    slow: bool = False
    """Many times slower than plain."""

    def rounds(self, cell: Cell, wanted: int) -> int:
        """Return how many of the rounds that are wanted run this: `FEW_ROUNDS` at most if slow or of batch 16."""
        return min(wanted, FEW_ROUNDS) if self.slow or cell.batch == max(BATCHES) else wanted


def vllm(model: Path, *flags: str) -> list[str]:
    """Arguments of a vLLM server as it comes."""
    return ["unlearn_serve.serving.vllm_serve", str(model), *flags]


def unlearn(inputs: Inputs, channel: str, *flags: str) -> list[str]:
    """Arguments of a server that follows `channel`."""
    state = inputs.root / "state" / channel
    ours = ("--store", inputs.store.url, "--channel", channel, "--max-rank", str(RANK), "--state-dir", str(state))
    return ["unlearn_serve.cli.app", "serve", str(inputs.model), *ours, *flags]


def _lora_server(inputs: Inputs, kind: str) -> list[str]:
    # Restricted to the linears that the adapters target: those it wraps in vain would cost vLLM still more.
    adapters = inputs.loras(kind)
    return vllm(
        inputs.model,
        *("--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(RANK)),
        *("--lora-target-modules", *LINEARS[kind]),
        *("--lora-modules", *(f"{path.name}={path}" for path in adapters)),
    )


def route_releases(inputs: Inputs, count: int) -> list[str]:
    """Digests of `count` releases that requests can name."""
    return [inputs.release(_FIRST_ROUTE_SEED + index) for index in range(count)]


def route_names(inputs: Inputs, count: int) -> tuple[str, ...]:
    """Model names by which requests pick these releases."""
    return tuple(f"{NAME}@{digest}" for digest in route_releases(inputs, count))


def server_specs(inputs: Inputs) -> dict[str, ServerSpec]:
    """Every server of the comparison, by name."""
    as_it_comes = {"VLLM_PLUGINS": ""}
    specs = [
        ServerSpec(name=PLAIN, arguments=lambda: vllm(inputs.model), environment=as_it_comes),
        ServerSpec(name="default", arguments=lambda: unlearn(inputs, CHANNEL)),
        ServerSpec(name="merged", arguments=lambda: vllm(inputs.merged), environment=as_it_comes),
        ServerSpec(name="routes", arguments=lambda: unlearn(inputs, CHANNEL, "--routes", str(ROUTE_SLOTS))),
        ServerSpec(name="plain-again", arguments=lambda: vllm(inputs.model), environment=as_it_comes),
        *(
            ServerSpec(
                name=f"lora-{kind}",
                arguments=partial(_lora_server, inputs, kind),
                environment=as_it_comes,
            )
            for kind in ("down", "all")
        ),
    ]
    return {spec.name: spec for spec in specs}


def variants(inputs: Inputs) -> list[Variant]:
    """Every variant, the plain one first."""
    loras = {kind: tuple(path.name for path in inputs.loras(kind)) for kind in ("down", "all")}
    lora_down: dict[str, Any] = {
        "name": "lora-down",
        "what": "vLLM LoRA on down_proj, 4 mixed",
        "server": "lora-down",
        "models": loras["down"],
    }
    batch8 = tuple(cell for cell in CELLS if cell.batch == 8)
    checks = (*batch8, Cell(load="decode", batch=1))
    return [
        Variant(name=PLAIN, what="vLLM as it comes, compiled", server=PLAIN),
        Variant(
            name="plain-again",
            what="a second such server: what the harness cannot resolve",
            server="plain-again",
            cells=checks,
        ),
        Variant(
            name="merged",
            what="vLLM as it comes, identity adapter folded into down_proj",
            server="merged",
            cells=checks,
        ),
        Variant(name="default", what="the default route: one release for all requests", server="default"),
        Variant(name="routes4", what="4 releases mixed", server="routes", models=route_names(inputs, 4)),
        Variant(
            name="routes8",
            what="8 releases mixed",
            server="routes",
            models=route_names(inputs, ROUTE_SLOTS),
            cells=(*batch8, Cell(load="decode", batch=16)),
        ),
        Variant(
            name="routes-over-slots",
            what=f"{OVER_SLOTS} releases mixed on {ROUTE_SLOTS} slots",
            server="routes",
            models=route_names(inputs, OVER_SLOTS),
            cells=batch8,
        ),
        Variant(**lora_down, cells=tuple(cell for cell in CELLS if cell.load == "decode")),
        # vLLM's LoRA on CPU prefills nearly ten times slower than plain.
        Variant(**lora_down, cells=(Cell(load="prefill", batch=1), Cell(load="prefill", batch=8)), slow=True),
        Variant(
            name="lora-all",
            what="vLLM LoRA on all linears, 4 mixed",
            server="lora-all",
            models=loras["all"],
            cells=(Cell(load="decode", batch=8),),
            slow=True,
        ),
        Variant(
            name="peft",
            what="transformers + PEFT LoRA on down_proj, 4 mixed, offline",
            server="peft",
            cells=checks,
            slow=True,
        ),
        Variant(
            name="adapters-lib",
            what="the `adapters` library, bottleneck adapters, 4 mixed, offline",
            server="adapters-lib",
            cells=checks,
            slow=True,
        ),
    ]
