"""The line that `unlearn-serve serve` becomes: what it adds for routes, leaves to the operator, and what ends it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.launch import serve, vllm_command
from unlearn_serve.store import Store


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


class TestAdminAddress:
    """Told before an engine is built: nobody waits a minute to learn of a typo."""

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
        """Start a server of a model that is not looked at, on the plain model of an empty store."""

        def start(**settings: object) -> None:
            config = ServingConfig(
                store=Store.open(str(tmp_path / "store"), create=True).url,
                state_dir=str(tmp_path / "state"),
                allow_plain=True,
                **settings,
            )
            serve("no/such-model", config, [])

        monkeypatch.setattr("os.execve", lambda *_: None)
        for name in ("UNLEARN_ADMIN_KEY", "UNLEARN_ADMIN_KEY_FILE", "VLLM_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        return start

    def test_with_a_key_and_a_free_address_it_starts(
        self, started: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        started()
        monkeypatch.setenv("UNLEARN_ADMIN_KEY", "k" * 16)
        started(admin_listen=f"unix:{tmp_path / 'admin.sock'}")

    def test_without_a_key_it_does_not(self, started: Callable[..., None]) -> None:
        with pytest.raises(NotEnforced, match="expected admin keys"):
            started(admin_listen="127.0.0.1:8001")

    def test_at_an_address_that_is_none_of_this_machine_it_does_not(
        self, started: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNLEARN_ADMIN_KEY", "k" * 16)
        with pytest.raises(NotEnforced, match="expected an address to listen on"):
            started(admin_listen="192.0.2.1:8001")

    def test_with_an_api_key_as_its_key_it_does_not(
        self, started: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNLEARN_ADMIN_KEY", "k" * 16)
        monkeypatch.setenv("VLLM_API_KEY", "k" * 16)
        with pytest.raises(NotEnforced, match="no API keys"):
            started()
