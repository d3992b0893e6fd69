"""The part of `vllm_internals` that routes need: vLLM's LoRA manager in the workers, its names in the API server.

The same rule holds: `tests/serving/test_vllm_lora.py` checks each against the installed vLLM.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of --max-lora-rank that make sense here. The buffers of our sites do not depend on it."""


def lora_slots(config: "VllmConfig") -> int:
    """Return how many adapters vLLM holds ready at a time; 0 where LoRA is off."""
    return config.lora_config.max_loras if config.lora_config is not None else 0


def lora_targets(config: "VllmConfig") -> list[str] | None:
    """Return the suffixes of modules that adapters may target; None is all of them."""
    return config.lora_config.target_modules if config.lora_config is not None else None


def cached_loras(config: "VllmConfig") -> int:
    """Return how many adapters a worker keeps in memory, those in slots included; 0 where LoRA is off."""
    return int(config.lora_config.max_cpu_loras or 0) if config.lora_config is not None else 0


def keep_compiled(config: "VllmConfig", only_target: str) -> bool:
    """Turn compilation back on where vLLM's CPU platform turned it off because LoRA is enabled; tells whether it did.

    That platform prepares compilation as always and then sets the mode to NONE if there is a LoRA configuration.
    Adapters of linear layers do run Python of the batch; our sites are one opaque op. So this holds only where no
    other module is a target. To be called before the model is built: its classes read the mode then.
    """
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    compilation = config.compilation_config
    prepared = compilation.inductor_compile_config.get("cpp.dynamic_threads")
    if not (current_platform.is_cpu() and prepared and lora_targets(config) == [only_target]):
        return False
    if compilation.mode != CompilationMode.NONE or config.model_config.enforce_eager:
        return False
    compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
    return True


def mixes_up_adapters(config: "VllmConfig", only_target: str) -> bool:
    """Tell whether vLLM's linear layers may apply an adapter to requests that name none (vllm-project/vllm#48421).

    On CPU, vLLM 0.32 reads index -1, no adapter, as the last slot wherever a batch has adapters too.
    """
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu() and config.lora_config is not None and lora_targets(config) != [only_target])


def compilation_mode(config: "VllmConfig") -> str:
    """Return the name of the mode in which this process compiles its model, NONE where it does not."""
    mode = config.compilation_config.mode
    return "NONE" if mode is None else str(mode.name)


def route_of_token(punica_wrapper: Any) -> torch.Tensor:
    """Return vLLM's buffer of every token's adapter index, -1 for none; int64, written before each step.

    Its rows past the tokens of a step keep what they held, and at first what the memory held: fill it with -1 once.
    """
    return punica_wrapper._token_lora_indices  # type: ignore[no-any-return]  # vllm is untyped here


def site_names(model: nn.Module, site_class: type[nn.Module]) -> dict[str, Any]:
    """Map the names under which vLLM's LoRA manager knows our sites to them; empty where LoRA is off."""
    manager = getattr(model, "lora_manager", None)
    modules = manager.modules if manager is not None else {}
    return {name: module for name, module in modules.items() if isinstance(module, site_class)}


def build_lora(lora_id: int, rank: int, layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Return vLLM's object for an adapter with W_down and W_up by module name; `layers` must not be empty.

    Page-locks the weights where vLLM would: it does so itself when it takes an adapter, but in the engine's loop.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights
    from vllm.utils.torch_utils import PIN_MEMORY

    weights = {}
    for name, (down, up) in layers.items():
        pair = (down.pin_memory(), up.pin_memory()) if PIN_MEMORY else (down, up)
        weights[name] = LoRALayerWeights(name, rank, rank, *pair)
    return LoRAModel(lora_id, rank, weights)


def adopt_lora(model: Any, lora: Any) -> None:
    """Put a built adapter into the manager's cache and keep it there until `drop_lora`; slots stay vLLM's affair.

    Raises:
        RuntimeError: the cache is full of adapters that are kept.
    """
    manager = model.lora_manager
    manager.add_adapter(lora)
    manager._registered_adapters.pin(lora.id)


def drop_lora(model: Any, lora_id: int) -> bool:
    """Take an adapter out of its slot and of the cache; tells whether it was there."""
    return bool(model.lora_manager.remove_adapter(lora_id))


def adapter_at(model: Any, index: int) -> Any:
    """Return the adapter that vLLM holds in slot `index`, None where there is none."""
    manager = model.lora_manager
    lora_id = manager.lora_index_to_id[index]
    return None if lora_id is None else manager._registered_adapters.cache.get(lora_id)


def adapters(model: Any) -> Iterator[tuple[Any, int | None]]:
    """Yield each adapter in the manager's cache with its slot, None where it has none."""
    manager = model.lora_manager
    for lora_id, lora in manager.list_adapters().items():
        held = lora_id in manager.lora_index_to_id
        yield lora, manager.lora_index_to_id.index(lora_id) if held else None


def named_adapters(state: Any) -> "dict[str, LoRARequest]":
    """Return the API server's mutable mapping from the names that `model` may have to adapters."""
    return state.openai_serving_models.lora_requests  # type: ignore[no-any-return]  # vllm is untyped here


def name_adapter(state: Any, name: str, lora_id: int, path: str) -> None:
    """Let requests name adapter `lora_id`; vLLM reads `path` only if no worker holds it."""
    from vllm.lora.request import LoRARequest

    named_adapters(state)[name] = LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=path)


def forget_adapter(state: Any, name: str) -> None:
    """Let no further request name the adapter."""
    named_adapters(state).pop(name, None)


def base_names(state: Any) -> list[str]:
    """Return the names of the base model, --served-model-name."""
    return [path.name for path in state.openai_serving_models.base_model_paths]


def next_lora_id(state: Any) -> int:
    """Return a number that no other adapter of this server has."""
    return int(state.openai_serving_models.lora_id_counter.inc(1))


def in_engine(engine: Any, name: str) -> bool:
    """Tell whether a request under adapter `name` has been handed to the engine and has not finished."""
    return any(request.lora_name == name for request in engine.output_processor.request_states.values())


@dataclass(frozen=True)
class AdapterRequest:
    """A request under an adapter, as the API server follows it; what it says moves on until it has finished."""

    _state: Any

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self._state.lora_name  # type: ignore[no-any-return]  # vllm is untyped here

    @property
    def external_id(self) -> str:
        """The id that statistics of finished requests give; several prompts or choices may share it."""
        return self._state.external_req_id  # type: ignore[no-any-return]  # vllm is untyped here

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self._state.prompt_len  # type: ignore[no-any-return]  # vllm is untyped here

    @property
    def generated_tokens(self) -> int:
        """Tokens that have come back so far; only where statistics are on."""
        return self._state.stats.num_generation_tokens  # type: ignore[no-any-return]  # vllm is untyped here


def requests_under_adapters(engine: Any) -> dict[str, AdapterRequest]:
    """Return the requests under any adapter that have not finished, by an id that no other has."""
    states = engine.output_processor.request_states
    return {internal_id: AdapterRequest(state) for internal_id, state in states.items() if state.lora_name is not None}
