"""The PEFT configuration of an adapter made of unlearning layers."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

from peft import LoraConfig

from unlearn_kernels import ACTIVATIONS
from unlearn_serve.layers.layer import UnlearningLayer
from unlearn_serve.layers.site import UnlearningSite
from unlearn_serve.sites import SITE_NAME

_FIXED = {
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclass
class UnlearnConfig(LoraConfig):  # type: ignore[misc]  # peft ships no types
    """A `LoraConfig` whose target is the sites and whose maps have an activation between them.

    On disk it is PEFT's adapter_config.json with peft_type LORA, target_modules ["unlearn"], lora_alpha == r (so the
    scaling is 1) and one more key, `unlearn_activation`. PEFT's own reader would drop that key, so give it this class:
    `PeftModel.from_pretrained(model, path, config=UnlearnConfig.from_pretrained(path))`.

    Raises:
        ValueError: unknown activation, or a LoRA option that the adapter format has no place for.
    """

    target_modules: Any = field(default=None)
    """What PEFT looks for: the sites, and nothing else is allowed."""

    task_type: Any = field(default="CAUSAL_LM")
    """PEFT's task, which picks the class of the PEFT model."""

    lora_alpha: int | None = field(default=None)
    """LoRA's numerator of the scaling; None means r, and nothing else is allowed."""

    unlearn_activation: str = field(default="silu")
    """Activation between W_down and W_up: one of `unlearn_kernels.ACTIVATIONS`."""

    def __post_init__(self) -> None:
        """Fill in the sites as target and validate."""
        self.target_modules = self.target_modules or [SITE_NAME]
        self.lora_alpha = self.r if self.lora_alpha is None else self.lora_alpha
        super().__post_init__()
        if self.unlearn_activation not in ACTIVATIONS:
            raise ValueError(
                f"unlearn_activation: expected one of {', '.join(ACTIVATIONS)}, got {self.unlearn_activation!r}"
            )
        if self.target_modules != {SITE_NAME}:
            raise ValueError(f"target_modules: expected [{SITE_NAME!r}], got {self.target_modules!r}")
        for name, expected in {**_FIXED, "lora_alpha": self.r}.items():
            if getattr(self, name) != expected:
                raise ValueError(f"{name}: expected {expected!r} in an unlearning adapter, got {getattr(self, name)!r}")
        self._register_custom_module({UnlearningSite: UnlearningLayer})

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Self:
        """Build from the keys of an adapter_config.json, whichever PEFT release wrote it.

        Raises:
            ValueError: a key that this PEFT release does not know is set to something.
        """
        known = {item.name for item in fields(cls) if item.init}
        unknown = sorted(name for name, value in kwargs.items() if name not in known and value)
        if unknown:
            raise ValueError(f"adapter_config.json: expected keys of peft's LoraConfig, got {', '.join(unknown)}")
        return cls(**{name: value for name, value in kwargs.items() if name in known})
