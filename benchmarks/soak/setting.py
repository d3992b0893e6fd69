"""What a soak runs on: marked releases in a store of its own, prompts, and the server that follows the channel."""

import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import httpx

from benchmarks.inputs import RANK, Inputs
from benchmarks.servers import NAME, Server, ServerSpec
from benchmarks.soak.client import openai_client
from benchmarks.soak.marked import vocabularies, write_marked
from benchmarks.streams import Streams
from benchmarks.variants import unlearn
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.launch import vllm_command, vllm_environment

CHANNEL = "soak"
RELEASES = 4
"""The channel moves between the first three; the last is for publishers that are killed."""

OUTPUT_TOKENS = 48
OWN_TOKENS, COMMON_TOKENS = 16, 128
"""Every fourth prompt begins with 128 tokens that are the same in all: one block of the prefix cache."""

PROMPTS = 256

SHARED_CORES = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Of the servers. Clients and publishers need the cores as well: importing torch binds a process to one core after the
other, and a publisher was seen to wait for minutes for the one that a worker, bound as vLLM has it, kept busy."""


@dataclass
class Setting:
    """Under `out`: `inputs` is kept from run to run, `store`, `state` and `logs` are made anew."""

    out: Path
    flags: Sequence[str] = ()
    """Further flags of the server."""
    defect: str | None = None
    """A fault seeded in the server, see defects.py: what the soak must be able to see."""
    step_tokens: int = 256
    """Tokens that the server computes in one step at most. oneDNN keeps kernels for each number of them that it has
    met, in any vLLM on CPU: `warm_up` meets all, or they would pass for a leak."""
    releases: list[str] = field(default_factory=list)
    """Digests, once published."""

    @property
    def store_folder(self) -> Path:
        """The store that publishers and servers share."""
        return self.out / "inputs" / "store"

    @property
    def audit_log(self) -> Path:
        """The audit log of the server under test; there is one once it has started."""
        (found,) = (self.out / "inputs" / "state" / CHANNEL).glob("*/audit.jsonl")
        return found

    @cached_property
    def inputs(self) -> Inputs:
        """Model, store and prompts."""
        return Inputs(self.out / "inputs")

    @cached_property
    def adapters(self) -> list[Path]:
        """Folders of the marked adapters, in the order of `releases`."""
        folders = [self.out / "inputs" / "adapters" / f"marked-{number}" for number in range(RELEASES)]
        for number, folder in enumerate(folders):
            if not (folder / "manifest.json").exists():
                write_marked(self.inputs.model, folder, own=self._vocabularies[number], seed=number)
        return folders

    @cached_property
    def _vocabularies(self) -> list[list[int]]:
        return vocabularies(self.inputs.model, RELEASES)

    def prepare(self) -> None:
        """Clear what an earlier run left, and publish all releases but the last."""
        for left in (self.store_folder, self.out / "inputs" / "state", self.out / "logs"):
            shutil.rmtree(left, ignore_errors=True)
        self.releases = [self.inputs.store.publish(adapter) for adapter in self.adapters[:-1]]
        self.inputs.promote(self.releases[0], CHANNEL)

    def words(self) -> dict[str, frozenset[int]]:
        """Return the tokens of each published release."""
        return {release: frozenset(own) for release, own in zip(self.releases, self._vocabularies, strict=False)}

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Prompts as token ids."""
        own = self.inputs.token_ids(self.inputs.prompts("soak", tokens=OWN_TOKENS, count=PROMPTS, seed=0))
        (common,) = self.inputs.token_ids(self.inputs.prompts("soak-common", tokens=COMMON_TOKENS, count=1, seed=0))
        return [[*common, *prompt] if number % 4 == 3 else prompt for number, prompt in enumerate(own)]

    def streams(self, server: Server, count: int, *, output_tokens: int = OUTPUT_TOKENS) -> Streams:
        """Clients of `server`."""
        return Streams(server.url, NAME, self.prompts, count=count, output_tokens=output_tokens, connect=openai_client)

    def warm_up(self, server: Server) -> None:
        """Have the server compute a step of every size."""
        chance = random.Random(0)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for tokens in range(1, self.step_tokens + 1):
                prompt = chance.choices(self.prompts[0], k=tokens)
                body = {"model": NAME, "prompt": prompt, "max_tokens": 1}
                client.post("/v1/completions", json=body).raise_for_status()

    def server(self, name: str = "soak", channel: str = CHANNEL) -> Server:
        """Start a server that follows `channel`."""
        flags = ("--max-num-batched-tokens", str(self.step_tokens), *self.flags)
        arguments, environment = unlearn(self.inputs, channel, *flags), SHARED_CORES
        if self.defect is not None and channel == CHANNEL:
            state = str(self.out / "inputs" / "state" / channel)
            config = ServingConfig(store=self.inputs.store.url, channel=channel, max_rank=RANK, state_dir=state)
            line = vllm_command(str(self.inputs.model), config, flags)
            arguments = ["benchmarks.soak.defects", self.defect, *line[line.index(str(self.inputs.model)) :]]
            environment = {**SHARED_CORES, **vllm_environment({})}
            assert line[0] == sys.executable
        spec = ServerSpec(name=name, arguments=lambda: arguments, environment=environment)
        return Server(spec, logs=self.out / "logs")
