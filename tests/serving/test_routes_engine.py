"""Routes in the real engine, on the real model in fp32: what each request of a mixed batch is computed under."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.adapters import write_random_adapter
from support.engine import batch_log_probabilities, engine_arguments, hold_route, set_environment, stage_and_flip
from support.server import GENEROUS_SECONDS, wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.layers import load_adapter
from unlearn_serve.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.model]

SLOTS = 2
# fp32 on both sides: order of sums only, through 30 blocks; as in test_real_model.py.
TOLERANCE = 2e-3
RELEASES = {"default": ("a",), "ab": ("a", "b"), "ac": ("a", "c"), "ad": ("a", "d"), "abc": ("a", "b", "c")}
# Short: each token's log-probabilities over the whole vocabulary are compared.
TEXTS = ("Romeo and Juliet", "Paris is in France", "Water boils when hot", "Once upon a time")


@dataclass
class World:
    """One engine under release `default`, its routes, and a folder with everything."""

    llm: Any
    folder: Path
    digests: dict[str, str]
    prompts: list[list[int]]
    routes: dict[str, Any]
    next_id: int = 100

    def hold(self, name: str) -> Any:
        """Bring a release in, under a new number, unless it is held."""
        if name not in self.routes:
            self.next_id += 1
            self.routes[name] = hold_route(self.llm, self.digests[name], self.next_id, self.folder / "routes")
        return self.routes[name]

    def drop(self, name: str) -> None:
        route = self.routes.pop(name)
        assert self.llm.collective_rpc("unlearn_drop_route", args=(route.lora_int_id,)) == [True]

    def batch(self, *adapters: Any) -> list[torch.Tensor]:
        """One prompt under each adapter, all in one batch; log-probabilities of a prompt never come from a cache."""
        return batch_log_probabilities(self.llm, self.prompts[: len(adapters)], list(adapters))

    def expected(self, *releases: str | None) -> list[torch.Tensor]:
        """The same prompts, each alone under a release that is the default, or under the plain model."""
        found = []
        for prompt, name in zip(self.prompts, releases, strict=False):
            self.default(name)
            found += batch_log_probabilities(self.llm, [prompt], [None])
        self.default("default")
        return found

    def default(self, name: str | None) -> None:
        if name is None:
            self.llm.collective_rpc("unlearn_restore", args=(None,))
            self.llm.reset_prefix_cache()
        else:
            stage_and_flip(self.llm, self.digests[name])


@pytest.fixture(scope="module")
def sql_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ordinary LoRA on two linear layers of every block, as PEFT saves it."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(ensure_checkpoint(), dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["o_proj", "down_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    path = tmp_path_factory.mktemp("sql-lora")
    tuned.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sql_lora: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("routes")
    base = ensure_checkpoint()
    store = Store.open(str(folder / "store"), create=True)
    digests = {
        name: store.publish(
            write_random_adapter(base, folder / name, deletion_id=ids, seed=seed, rank=8 + 4 * seed % 12, scale=0.2)
        )
        for seed, (name, ids) in enumerate(RELEASES.items())
    }
    store.promote(digests["default"], "production", actor="test")
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, VLLM_ENABLE_V1_MULTIPROCESSING="0")
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        arguments = engine_arguments(base, folder / "store", folder / "state", routes=SLOTS, max_rank=32)
        # Not lm_head: with LoRA on it, vLLM 0.32 on CPU cannot give log-probabilities of prompts.
        targets = ["unlearn", "o_proj", "down_proj"]
        lora = {"enable_lora": True, "max_loras": SLOTS, "max_cpu_loras": 6, "lora_target_modules": targets}
        llm = LLM(**arguments | lora | {"dtype": "float32"}, max_logprobs=-1)
        yield World(llm, folder, digests, [tokenizer(text)["input_ids"] for text in TEXTS], {})
        del llm
        cleanup_dist_env_and_memory()


def close(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


def different(got: torch.Tensor, other: torch.Tensor) -> bool:
    """Far enough apart that no rounding explains it."""
    return bool((got - other).abs().max() > 100 * TOLERANCE)


def test_each_request_of_a_mixed_batch_is_computed_as_if_its_release_were_the_default(world: World) -> None:
    got = world.batch(None, world.hold("ab"), world.hold("ac"), None)

    expected = world.expected("default", "ab", "ac", "default")
    close(got, expected)
    assert different(expected[1], world.expected("default", "default")[1]), "the test can tell releases apart"


def test_plain_tokens_keep_every_bit_beside_a_route(world: World) -> None:
    world.default(None)
    alone = world.batch(None, None)
    mixed = world.batch(None, world.hold("ab"))
    world.default("default")

    assert torch.equal(mixed[0], alone[0])
    assert different(mixed[1], alone[1])


def test_more_routes_than_slots_take_turns(world: World) -> None:
    got = world.batch(*(world.hold(name) for name in ("ab", "ac", "ad", "abc")))

    close(got, world.expected("ab", "ac", "ad", "abc"))


def test_a_new_default_takes_over_the_routes_that_do_not_cover_it(world: World) -> None:
    """The bug: id c is deleted for every request but those whose route was published before."""
    routes = [world.hold("ab"), world.hold("abc")]
    world.batch(*routes)
    world.default("ac")
    after = world.batch(*routes)
    covered = {route["release"]: route["covered"] for route in world.llm.collective_rpc("unlearn_status")[0]["routes"]}
    world.default("default")
    back = world.batch(*routes)

    close(after, world.expected("ac", "abc"))
    close(back, world.expected("ab", "abc"))
    assert (covered[world.digests["ab"]], covered[world.digests["abc"]]) == (False, True)


def test_a_dropped_route_comes_back_with_its_own_weights_and_cache(world: World) -> None:
    """vLLM's reload under a known name goes on with the KV of the weights that were there before."""
    prompt = world.prompts[0] * 60  # longer than a block of the cache

    def answer(adapter: Any) -> tuple[torch.Tensor, int]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, detokenize=False)
        named = {"lora_request": [adapter]} if adapter else {}
        (output,) = world.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False, **named)
        (candidates,) = output.outputs[0].logprobs
        return torch.tensor([candidates[token].logprob for token in sorted(candidates)]), output.num_cached_tokens

    under_ab, cold = answer(world.hold("ab"))
    assert (cold, answer(world.hold("ab"))[1] > 0) == (0, True), "the prefix cache works for routes"
    under_ac, cold_beside = answer(world.hold("ac"))
    under_default, cold_default = answer(None)
    world.drop("ab")
    again, cold_again = answer(world.hold("ab"))

    assert (cold_beside, cold_default, cold_again) == (0, 0, 0), (
        "no KV is shared between releases, or with an earlier one"
    )
    close([again], [under_ab])
    assert different(under_ab, under_ac), "the test can tell releases apart"
    assert different(under_ab, under_default), "the test can tell releases apart"


def test_dropping_reaches_the_engine_and_a_request_that_still_names_it_falls_back(world: World) -> None:
    """vLLM's unload leaves the weights in the engine; and losing them while a request runs must not end the engine."""
    route = world.hold("ad")
    world.batch(route)
    world.drop("ad")
    held = [one["release"] for one in world.llm.collective_rpc("unlearn_status")[0]["routes"]]
    got = world.batch(route)

    assert world.digests["ad"] not in held
    close(got, world.expected("default"))
    world.llm.collective_rpc("unlearn_drop_route", args=(route.lora_int_id,))


def test_the_engine_computes_while_a_route_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM loads an adapter inside the engine's loop, which then does nothing else."""
    held, may_go_on, load = world.hold("ab"), Event(), Store.load_release

    def slow(store: Store, digest: str) -> Any:
        assert may_go_on.wait(GENEROUS_SECONDS)
        return load(store, digest)

    monkeypatch.setattr(Store, "load_release", slow)
    path = str(world.folder / "routes" / "slow")
    world.llm.collective_rpc("unlearn_stage_route", args=(world.digests["ad"], 90, path))
    got = world.batch(None, held)
    state_meanwhile = world.llm.collective_rpc("unlearn_route_staging", args=(90,))
    may_go_on.set()
    wait_until(lambda: world.llm.collective_rpc("unlearn_route_staging", args=(90,))[0][0] == "ready", "it is read")
    world.llm.collective_rpc("unlearn_drop_route", args=(90,))

    assert state_meanwhile == [("busy", None)]
    close(got, world.expected("default", "ab"))


def test_no_file_is_read_in_the_engine_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM loads in the loop, and after a reload in place once more with each step."""
    import safetensors

    routes = [world.hold(name) for name in ("ab", "ac", "ad")]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the engine loop opened an adapter file")

    monkeypatch.setattr(safetensors, "safe_open", never)
    monkeypatch.setattr(Store, "open", never)
    world.batch(*routes)


def test_an_ordinary_lora_is_served_under_the_enforced_default(world: World, sql_lora: Path) -> None:
    from vllm.lora.request import LoRARequest

    # No request without an adapter in this batch: to its linear layers vLLM 0.32 on CPU applies the LoRA in the last
    # slot (vllm-project/vllm#48421), with or without us.
    lora = LoRARequest("sql-lora", 7, str(sql_lora))
    got = world.batch(world.hold("ab"), lora, world.hold("ab"), lora)

    expected = [_of_transformers(sql_lora, world.folder / "default", world.prompts[i]) for i in (1, 3)]
    close([got[1], got[3]], expected)
    close([got[0], got[2]], world.expected("ab", "ab", "ab")[::2])
    assert different(got[1], world.expected("default", "default")[1]), "the LoRA does something"


def test_an_unlearning_adapter_loaded_as_an_ordinary_lora_is_not_served(world: World) -> None:
    """Not verified, not known to cover anything: its tokens stay under the default."""
    from vllm.lora.request import LoRARequest

    smuggled = LoRARequest("smuggled", 8, str(world.folder / "ac"))
    got = world.batch(smuggled)

    assert world.llm.collective_rpc("unlearn_status")[0]["unverified"] == [8], "a server refuses to start with it"
    close(got, world.expected("default"))


def _of_transformers(lora: Path, adapter: Path, prompt: list[int]) -> torch.Tensor:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(ensure_checkpoint(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, lora).merge_and_unload()
    model = load_adapter(model, adapter)
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
