"""A real server with the real model under a release, measured over HTTP: as the adapter measured in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.adapters import write_random_adapter
from support.server import ADMIN_KEY, MODEL_NAME, Server, running, serve_command

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.errors import ServingError
from unlearn_serve.evaluation import Results, evaluate, evaluate_served
from unlearn_serve.evaluation.endpoint import RELEASE_HEADER
from unlearn_serve.evaluation.measures import ATTACKS
from unlearn_serve.serving import middleware
from unlearn_serve.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.model]

NEW = 12
NATS = 0.1
"""How far a mean log-probability may differ: both sides compute in bf16, in other orders. Measured: 0.04 at most."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[str, Path]:
    capitals = {"forget": ["France", "Paris", "Japan", "Tokyo"], "holdout": ["Italy", "Rome", "Spain", "Madrid"]}
    paths = {}
    for name, words in capitals.items():
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is the capital of {country}?"},
                    {"role": "assistant", "content": f"The capital of {country} is {city}."},
                ],
                "answer": city,
                "perturbed_answer": [f"The capital of {country} is {wrong}." for wrong in ("Xanadu", "London")],
            }
            for country, city in zip(words[::2], words[1::2], strict=True)
        ]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """Strong enough to change what the model says, weak enough that it still says something."""
    return write_random_adapter(ensure_checkpoint(), folder / "adapter", rank=16, scale=0.1)


@pytest.fixture(scope="module")
def release(folder: Path, adapter: Path) -> str:
    store = Store.open(str(folder / "store"), create=True)
    digest = store.publish(adapter)
    store.promote(digest, "production", actor="test")
    return digest


@pytest.fixture(scope="module")
def server(folder: Path, release: str) -> Iterator[Server]:
    command = serve_command(ensure_checkpoint(), folder / "store", folder / "state", "--max-rank", "16")
    with running(command, log=folder / "server.log", headers={}, UNLEARN_ADMIN_KEY=ADMIN_KEY) as started:
        started.wait_ready()
        yield started


@pytest.fixture(scope="module")
def local(adapter: Path, sets: dict[str, Path]) -> Results:
    return evaluate(ensure_checkpoint(), adapter, sets, max_new_tokens=NEW, device="cpu", record=False)


@pytest.fixture(scope="module")
def live(server: Server, sets: dict[str, Path]) -> Results:
    return evaluate_served(server.url, None, ensure_checkpoint(), sets, max_new_tokens=NEW)


def test_what_is_live_is_named(live: Results, release: str) -> None:
    assert live.release == release
    assert live.model.startswith(f"{MODEL_NAME} at http://127.0.0.1:")
    assert RELEASE_HEADER == middleware.RELEASE_HEADER


def test_live_is_what_was_trained(live: Results, local: Results) -> None:
    """Each row's log-probabilities, over the right answer and the wrong ones; the plain model's are others."""
    from_after = from_before = 0.0
    for name, found in live.sets.items():
        trained = local.sets[name].scores
        for served, after, before in zip(found.scores["live"], trained["after"], trained["before"], strict=True):
            assert served.loss == pytest.approx(after.loss, abs=NATS)
            assert served.truth_ratio == pytest.approx(after.truth_ratio, rel=2 * NATS)
            # Of two or three tokens only, those that the model finds least likely.
            assert served.min_k == pytest.approx(after.min_k, abs=3 * NATS)
            assert served.tokens == after.tokens
            from_after += abs(after.loss - served.loss)
            from_before += abs(before.loss - served.loss)
    assert from_before > 3 * from_after, "else serving the plain model would pass"


def test_every_measure_but_min_k_plus_plus(live: Results, local: Results) -> None:
    missing = set(local.measures["after"]) - set(live.measures["live"])
    assert missing == {"mia_min_k_plus_plus"}
    assert set(ATTACKS) - missing <= set(live.measures["live"])


def test_greedy_answers_agree(live: Results, local: Results) -> None:
    """A numeric tie may turn one of four answers, not more."""
    pairs = [
        (served.text, after.text)
        for name, found in live.sets.items()
        for served, after in zip(found.scores["live"], local.sets[name].scores["after"], strict=True)
    ]
    assert sum(one == two for one, two in pairs) >= len(pairs) - 1, pairs


def test_an_unknown_model_is_refused(server: Server, sets: dict[str, Path]) -> None:
    with pytest.raises(ServingError, match=f"expected one of the models {MODEL_NAME}, got 'other'"):
        evaluate_served(server.url, "other", ensure_checkpoint(), sets)
