"""The line that `unlearn-serve serve` becomes: what it adds for routes, and what it leaves to the operator."""

import pytest

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.launch import vllm_command


def flags(*given: str, **settings: object) -> list[str]:
    config = ServingConfig.model_validate({"store": "/store", **settings})
    command = vllm_command("model", config, given)
    return command[command.index("--worker-extension-cls") + 2 :]


def test_without_routes_lora_stays_off() -> None:
    assert flags("--port", "1") == ["--port", "1"]


def test_routes_alone_wrap_nothing_but_the_sites() -> None:
    got = flags(routes=3, max_rank=20)

    assert got[0] == "--enable-lora"
    assert dict(zip(got[1::2], got[2::2], strict=True)) == {
        "--max-loras": "3",
        "--max-cpu-loras": "16",
        "--max-lora-rank": "32",
        "--lora-target-modules": "unlearn",
    }


def test_where_the_operator_enables_lora_its_targets_and_sizes_are_theirs() -> None:
    given = ("--enable-lora", "--max_loras=8", "--max-lora-rank", "64")
    got = flags(*given, routes=5)

    assert "--lora-target-modules" not in got
    assert "--max-loras" not in got
    assert got[-4:] == list(given)
    assert got[got.index("--max-cpu-loras") + 1] == "20"


def test_no_rank_is_too_large_for_vllm() -> None:
    got = flags(routes=1, max_rank=1024)

    assert got[got.index("--max-lora-rank") + 1] == "512"


@pytest.mark.parametrize("flag", ["--additional-config", "--worker_extension_cls=x"])
def test_what_enforcement_needs_cannot_be_replaced(flag: str) -> None:
    with pytest.raises(NotEnforced, match="this flag is set by unlearn-serve"):
        flags(flag)
