"""A small made-up recording: enough for the pure parts, checks and rendering, to work on."""

from collections.abc import Mapping

from unlearn_serve.demo.phases import Answer, Phase, Score, Token
from unlearn_serve.demo.report import Swap
from unlearn_serve.demo.stream import StreamedRequest

RELEASE_1, RELEASE_2 = "1" * 64, "2" * 64
FINGERPRINTS = {0: "unlearn-plain", 1: "unlearn-1111111111111111-g1", 2: "unlearn-2222222222222222-g2"}
SWAPS = (
    Swap(
        release=RELEASE_1,
        generation=1,
        action="promote",
        deletion_ids=["case-17"],
        at=100.0,
        stage_ms=200.0,
        stall_ms=40.0,
        publish_to_live_ms=500.0,
    ),
    Swap(
        release=RELEASE_2,
        generation=2,
        action="promote",
        deletion_ids=["case-17", "case-18"],
        at=200.0,
        stage_ms=210.0,
        stall_ms=41.0,
        publish_to_live_ms=510.0,
    ),
)


def streamed(started: float, *, begun: int, ended: int, seconds: float = 1.0) -> StreamedRequest:
    """A good request that began under generation `begun` and ended under generation `ended`."""
    times = [started + seconds * step / 10 for step in range(1, 10)]
    return StreamedRequest(
        stream=0,
        kind="forget1",
        question="Who wrote Hamlet?",
        gold="Shakespeare",
        started=started,
        answer="William Shakespeare.",
        token_times=times,
        ended=started + seconds,
        finish_reason="stop",
        release=("plain", RELEASE_1, RELEASE_2)[begun],
        fingerprint=FINGERPRINTS[ended],
    )


def answer(*tokens: str, top: Mapping[str, float] | None = None, gold: str = "Shakespeare") -> Answer:
    """An answer of these tokens, each certain, save that the last one has the likely tokens `top` in its place."""
    written = [Token(text=token, top={token: 0.0}) for token in tokens]
    if top is not None:
        written[-1] = Token(text=tokens[-1], top=dict(top))
    text = "".join(tokens)
    return Answer(
        question="Who wrote Hamlet?",
        gold=gold,
        text=text,
        correct=gold in text,
        probability=0.5,
        fingerprint=FINGERPRINTS[1],
        tokens=written,
    )


def phase(name: str, release: str, accuracy: Mapping[str, float], *answers: Answer) -> Phase:
    """A phase with these accuracies by set, and these answers to the first deletion request."""
    scores = {kind: Score(accuracy=value, probability=value / 2, samples=40) for kind, value in accuracy.items()}
    return Phase(name=name, release=release, scores=scores, answers={"forget1": list(answers)})
