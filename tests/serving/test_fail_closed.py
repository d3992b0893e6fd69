"""A server that cannot enforce a release never becomes ready, and says why in one line.

`TestWorker` builds the model as a worker does, in this process: whatever is raised there ends an engine, as the
end-to-end cases in `TestServer` show, one for each way in which a start can fail.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import write_random_adapter
from support.engine import set_environment
from support.server import CLI, GENEROUS_SECONDS, plain_vllm_command, running, server_environment, wait_until
from support.tiny_models import WITHOUT_FFN_MODULE, write_tiny_model
from support.vllm_config import create_config, lone_worker

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.errors import (
    BaseModelMismatch,
    NotEnforced,
    SwapError,
    UnlearnServeError,
    Unsigned,
    UnsupportedModel,
)
from unlearn_serve.format.keys import generate_key, write_key_pair
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.models import WORKER_EXTENSION, enforced_layers, register_models
from unlearn_serve.store import Store


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a real tokenizer, so that a whole server can start on it."""
    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny", vocab_size=49152, tokenizer=ensure_checkpoint())


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Store:
    """A store whose channel `production` names a good release for `base`."""
    store = Store.open(str(tmp_path / "store"), create=True)
    store.promote(store.publish(write_random_adapter(base, tmp_path / "adapter")), "production", actor="test")
    return store


@pytest.fixture
def settings(store: Store, tmp_path: Path) -> dict[str, Any]:
    return {"store": store.url, "state_dir": str(tmp_path / "state")}


def corrupt(store: Store) -> None:
    """Change one bit of the release that `production` names."""
    weights = Path(store.url) / "releases" / store.channel("production").release / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def keep(settings: dict[str, Any], store: Store) -> None:
    """Remember the channel's entry as the one applied last."""
    LastApplied(ServingConfig(**settings).state_path).remember(store.channel("production"), store)


@pytest.mark.model
class TestWorker:
    """The model of a worker, built under each fault."""

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_environment(monkeypatch)

    def build(self, model: Path, settings: dict[str, Any] | None, extension: str = WORKER_EXTENSION) -> torch.nn.Module:
        from vllm.model_executor.model_loader.utils import initialize_model

        register_models()
        additional = {} if settings is None else {"unlearn": settings}
        config = create_config(model, additional_config=additional, worker_extension_cls=extension)
        with lone_worker(config):
            return initialize_model(config)

    def refusal(self, model: Path, settings: dict[str, Any] | None, error: type[UnlearnServeError], **more: str) -> str:
        with pytest.raises(error) as caught:
            self.build(model, settings, **more)
        message = str(caught.value)
        assert "\n" not in message
        return message

    def test_without_a_fault_the_release_is_live(self, base: Path, store: Store, settings: dict[str, Any]) -> None:
        layers = enforced_layers(self.build(base, settings))

        assert layers.live is not None
        assert layers.live.release == store.channel("production").release
        assert sorted(layers.sites) == [0, 1]

    def test_missing_worker_extension(self, base: Path, settings: dict[str, Any]) -> None:
        message = self.refusal(base, settings, NotEnforced, extension="")

        assert message == f"--worker-extension-cls: expected {WORKER_EXTENSION}, got none"

    def test_endpoint_plugin_not_named(
        self, base: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # vLLM then loads general plugins all the same, and the endpoint plugin not: the channel would not be followed.
        monkeypatch.delenv("VLLM_PLUGINS")

        message = self.refusal(base, settings, NotEnforced)

        assert message.startswith("VLLM_PLUGINS: expected unlearn_serve")

    def test_missing_settings(self, base: Path) -> None:
        assert "--additional-config has no key 'unlearn'" in self.refusal(base, None, NotEnforced)

    def test_unknown_setting(self, base: Path, settings: dict[str, Any]) -> None:
        message = self.refusal(base, {**settings, "chanel": "production"}, NotEnforced)

        assert "unlearn.chanel: Extra inputs are not permitted" in message

    def test_missing_sites(self, settings: dict[str, Any], tmp_path: Path) -> None:
        family, options = WITHOUT_FFN_MODULE
        model = write_tiny_model(tmp_path / family, family=family, **options)

        assert "no decoder block with a feed-forward child" in self.refusal(model, settings, UnsupportedModel)

    @pytest.mark.parametrize("allow_plain", [False, True])
    def test_corrupt_release(self, base: Path, store: Store, settings: dict[str, Any], allow_plain: bool) -> None:
        keep(settings, store)  # neither an earlier release nor the plain model stands in for a corrupt one
        corrupt(store)

        message = self.refusal(base, {**settings, "allow_plain": allow_plain}, NotEnforced)

        assert message.startswith("channel 'production' names a release that cannot be served: ")
        assert "sha256" in message

    def test_unsigned_release(self, base: Path, store: Store, settings: dict[str, Any]) -> None:
        key = generate_key()
        trusting = {**settings, "trusted_keys": [key.public]}

        assert "expected a signature by a trusted key" in self.refusal(base, trusting, Unsigned)
        store.sign_channel("production", key)
        layers = enforced_layers(self.build(base, trusting))
        assert layers.live is not None
        assert layers.live.release == store.channel("production").release

    def test_another_base_model(self, settings: dict[str, Any], tmp_path: Path) -> None:
        other = write_tiny_model(tmp_path / "other", vocab_size=49152, seed=1)

        assert "weights_sha256" in self.refusal(other, settings, BaseModelMismatch)

    def test_too_large_a_rank(self, base: Path, settings: dict[str, Any]) -> None:
        assert "expected rank <= 4" in self.refusal(base, {**settings, "max_rank": 4}, SwapError)

    def test_store_gone(self, base: Path, settings: dict[str, Any]) -> None:
        shutil.rmtree(settings["store"])

        message = self.refusal(base, settings, NotEnforced)

        assert message.startswith("no release to start on: store ")
        assert "--allow-plain" in message

    def test_no_such_channel(self, base: Path, settings: dict[str, Any]) -> None:
        message = self.refusal(base, {**settings, "channel": "staging"}, NotEnforced)

        assert "holds no channel 'staging'" in message

    def test_store_gone_and_plain_allowed(self, base: Path, settings: dict[str, Any]) -> None:
        shutil.rmtree(settings["store"])

        layers = enforced_layers(self.build(base, {**settings, "allow_plain": True}))

        assert layers.live is None

    @pytest.mark.parametrize("gone", ["store", "store/channels"])
    @pytest.mark.parametrize("allow_plain", [False, True])
    def test_store_or_channel_gone_and_a_release_kept(
        self, base: Path, store: Store, settings: dict[str, Any], tmp_path: Path, gone: str, allow_plain: bool
    ) -> None:
        release = store.channel("production").release
        keep(settings, store)
        shutil.rmtree(tmp_path / gone)

        layers = enforced_layers(self.build(base, {**settings, "allow_plain": allow_plain}))

        assert layers.live is not None
        assert layers.live.release == release

    @pytest.mark.parametrize("allow_plain", [False, True])
    def test_store_gone_and_a_damaged_release_kept(
        self, base: Path, store: Store, settings: dict[str, Any], allow_plain: bool
    ) -> None:
        keep(settings, store)
        (kept,) = ServingConfig(**settings).state_path.glob("releases/releases/*/adapter_model.safetensors")
        kept.write_bytes(b"")
        shutil.rmtree(settings["store"])

        self.refusal(base, {**settings, "allow_plain": allow_plain}, UnlearnServeError)


@pytest.mark.engine
@pytest.mark.model
class TestServer:
    """Whole servers, on vLLM's own command line; none may ever answer."""

    @pytest.fixture
    def output(self, base: Path, settings: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
        """Start a server that must die, and return all that it printed."""

        def start(**environment: str) -> str:
            command = plain_vllm_command(base, settings)
            with running(command, log=tmp_path / "server.log", headers={}, **environment) as server:

                def ended() -> bool:
                    assert not server.answers_health(), "a server that enforces nothing became ready"
                    return server.process.poll() is not None

                wait_until(ended, "the server ends")
                assert server.process.returncode != 0
                return server.output

        return start

    @pytest.fixture
    def break_import(self, tmp_path: Path) -> Iterator[Callable[[str], dict[str, str]]]:
        """Make a module of ours raise when imported, in a server and all its children: environment variables."""

        def of(module: str) -> dict[str, str]:
            (tmp_path / "path").mkdir()
            (tmp_path / "path" / "sitecustomize.py").write_text(_BROKEN_IMPORT.format(module=module))
            return {"PYTHONPATH": str(tmp_path / "path")}

        return of

    def test_plugin_that_cannot_be_imported(
        self, output: Callable[..., str], break_import: Callable[[str], dict[str, str]]
    ) -> None:
        # vLLM logs and swallows this one, for both of our entry points: only the worker extension is left to notice.
        said = output(**break_import("unlearn_serve.serving.plugin"))

        assert "Failed to load plugin unlearn_serve" in said
        assert _lines(said, "ImportError: unlearn_serve.serving.plugin is broken")

    def test_models_that_cannot_be_imported(
        self, output: Callable[..., str], break_import: Callable[[str], dict[str, str]]
    ) -> None:
        assert _lines(output(**break_import("unlearn_serve.serving.models")), "unlearn_serve.serving.models is broken")

    def test_plugin_not_named(self, output: Callable[..., str]) -> None:
        said = output(VLLM_PLUGINS="another")

        assert _lines(said, "NotEnforced: the plugin entry point vllm.general_plugins:unlearn_serve did not run")

    def test_corrupt_release(self, output: Callable[..., str], store: Store) -> None:
        corrupt(store)

        said = output()

        assert _lines(said, "NotEnforced: channel 'production' names a release that cannot be served")

    def test_fault_found_after_the_engine_was_built(self, output: Callable[..., str], settings: dict[str, Any]) -> None:
        Path(settings["state_dir"]).write_text("a file where a folder should be")

        assert _lines(output(), "unlearn-serve: refusing to serve: --state-dir: expected a folder")


@pytest.mark.model
class TestFrontDoor:
    """`unlearn-serve serve` looks before it starts vLLM: one line on stderr, and nothing else."""

    def refusal(self, model: Path, settings: dict[str, Any], *flags: str) -> str:
        options = ["--store", settings["store"], "--state-dir", settings["state_dir"]]
        result = subprocess.run(
            [CLI, "serve", str(model), *options, *flags],
            env=server_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=GENEROUS_SECONDS,
        )
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line

    def test_store_gone(self, base: Path, settings: dict[str, Any]) -> None:
        shutil.rmtree(settings["store"])

        assert self.refusal(base, settings).startswith("error (NotEnforced): no release to start on")

    def test_another_base_model(self, settings: dict[str, Any], tmp_path: Path) -> None:
        other = write_tiny_model(tmp_path / "other", vocab_size=49152, seed=1)

        assert self.refusal(other, settings).startswith("error (BaseModelMismatch)")

    def test_unsigned_release(self, base: Path, settings: dict[str, Any], tmp_path: Path) -> None:
        write_key_pair(tmp_path / "ops")

        line = self.refusal(base, settings, "--trusted-key", str(tmp_path / "ops.pub"))

        assert line.startswith("error (Unsigned): channel 'production' generation 1: expected a signature by a trusted")

    def test_a_flag_that_would_replace_ours(self, base: Path, settings: dict[str, Any]) -> None:
        line = self.refusal(base, settings, "--worker-extension-cls", "somebody.elses.Worker")

        assert line.startswith("error (NotEnforced): --worker-extension-cls: this flag is set by unlearn-serve")


_BROKEN_IMPORT = """
import sys


class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ImportError(name + " is broken")


sys.meta_path.insert(0, Broken())
"""


def _lines(output: str, reason: str) -> list[str]:
    return [line for line in output.splitlines() if reason in line]
