"""What the story must show, asserted: each function states one promise and says whether the run kept it."""

from collections.abc import Sequence

from unlearn_serve.demo.phases import Answer, Phase
from unlearn_serve.demo.report import Check, Difference, Rollback, Swap
from unlearn_serve.demo.stream import StreamedRequest

MIN_KNOWN_BEFORE = 0.8
"""Below it the plain model does not know what is to be forgotten, and forgetting it shows nothing."""

MAX_FORGET, MAX_PARAPHRASE = 0.1, 0.2
MAX_FALL = 0.05
TIE_TOLERANCE = 0.25
"""Log-probability gap of a numeric tie. This model's best logits lie between 16 and 32, where bfloat16 has steps of
0.125; another batch may round either of two logits by one step, so the gap between them may change by two. Seen for
one release that was never swapped, scored under five loads: gaps up to 0.125; in one of two runs of the story: 0.25."""

CLOCK_SLACK = 0.1
"""Seconds by which the client's and the server's view of one moment may differ."""

READING_LAG = 2.0
"""Seconds by which a client on busy cores may read a chunk after the server made it; 0.7 was seen."""

PLAIN = "plain"


def no_request_failed(requests: Sequence[StreamedRequest]) -> Check:
    """Every streamed request ended properly."""
    failed = [request for request in requests if request.failed]
    detail = f"{len(requests)} requests, {len(failed)} failed or truncated"
    if failed:
        first = failed[0]
        detail += f"; the first: {first.question!r}: {first.error or f'finish_reason {first.finish_reason}'}"
    return Check(name="no request failed", ok=bool(requests) and not failed, detail=detail)


def same_processes(before: Sequence[int], after: Sequence[int]) -> Check:
    """The server's processes are those that it started with."""
    return Check(name="same process ids", ok=list(before) == list(after), detail=f"{list(before)} then {list(after)}")


def served_as_announced(requests: Sequence[StreamedRequest], swaps: Sequence[Swap]) -> Check:
    """No response begins or ends under another release than the one that is live at that moment.

    So all answers that began after a swap come from the new release only.
    """
    # (release, fingerprint, earliest, latest): a swap's own duration belongs to both releases.
    live: list[tuple[str, str, float, float]] = []
    begin, release, fingerprint = 0.0, PLAIN, f"unlearn-{PLAIN}"
    for swap in swaps:
        live.append((release, fingerprint, begin - CLOCK_SLACK, swap.at + CLOCK_SLACK))
        begin, release = swap.at - swap.stall_ms / 1e3, swap.release
        fingerprint = f"unlearn-{release[:16]}-g{swap.generation}"
    live.append((release, fingerprint, begin - CLOCK_SLACK, float("inf")))

    def expected(index: int, first: float, last: float) -> set[str | None]:
        return {(entry[0], entry[1])[index] for entry in live if first <= entry[3] and last >= entry[2]}

    wrong = [
        request
        for request in requests
        if not request.failed
        and (
            request.release not in expected(0, request.started, (request.token_times or [request.ended])[0])
            or request.fingerprint not in expected(1, _earliest_end(request), request.ended)
        )
    ]
    detail = f"{len(requests)} responses, {len(wrong)} under a release that was not live"
    if wrong:
        detail += f"; the first: {wrong[0].question!r} under {wrong[0].release} and {wrong[0].fingerprint}"
    return Check(name="every answer comes from the live release", ok=not wrong, detail=detail)


def _earliest_end(request: StreamedRequest) -> float:
    """Return from when on the server can have made the last chunk, which names the release at the end."""
    last_read = (request.token_times or [request.ended])[-1]
    return max(request.started, last_read - READING_LAG)


def known_before(phase: Phase) -> Check:
    """The plain model knows what is to be forgotten."""
    accuracy = phase.scores["forget"].accuracy
    return Check(
        name="known before",
        ok=accuracy >= MIN_KNOWN_BEFORE,
        detail=f"forget accuracy {accuracy:.3f} on the plain model",
    )


def forgotten(phase: Phase, live_requests: Sequence[int]) -> Check:
    """Each deletion request that is live is forgotten, in the training's words and in others."""
    seen = {
        (number, suffix): phase.scores[f"forget{number}{suffix}"].accuracy
        for number in live_requests
        for suffix in ("", "_paraphrase")
    }
    ok = all(value <= (MAX_PARAPHRASE if suffix else MAX_FORGET) for (_, suffix), value in seen.items())
    detail = ", ".join(f"forget{number}{suffix} {value:.3f}" for (number, suffix), value in seen.items())
    return Check(name=f"forgotten: {phase.name}", ok=ok, detail=f"accuracy {detail}")


def retained(before: Phase, phase: Phase) -> Check:
    """What is not to be forgotten is still known."""
    falls = {kind: before.scores[kind].accuracy - phase.scores[kind].accuracy for kind in ("retain", "general")}
    detail = ", ".join(
        f"{kind} {before.scores[kind].accuracy:.3f} -> {phase.scores[kind].accuracy:.3f}" for kind in falls
    )
    # A hair of slack: 40 answers make 0.05 exactly two of them, and floats do not subtract exactly.
    ok = all(fall <= MAX_FALL + 1e-9 for fall in falls.values())
    return Check(name=f"retained: {phase.name}", ok=ok, detail=f"accuracy {detail}")


def scored_under(phase: Phase, generation: int) -> Check:
    """Every scored answer names the phase's release."""
    expected = f"unlearn-{PLAIN}" if phase.release == PLAIN else f"unlearn-{phase.release[:16]}-g{generation}"
    got = sorted({answer.fingerprint for answers in phase.answers.values() for answer in answers})
    return Check(name=f"scored under its release: {phase.name}", ok=got == [expected], detail=f"fingerprints {got}")


def compare_answers(earlier: Phase, later: Phase) -> Rollback:
    """Compare two phases of one release answer by answer, token by token."""
    pairs = [
        pair for kind, answers in earlier.answers.items() for pair in zip(answers, later.answers[kind], strict=True)
    ]
    differences = [
        Difference(question=one.question, before=one.text, after=other.text, gap=_gap(one, other))
        for one, other in pairs
        if [token.text for token in one.tokens] != [token.text for token in other.tokens]
    ]
    shift = max((_shift(one, other) for one, other in pairs), default=0.0)
    return Rollback(compared=len(pairs), tolerance=TIE_TOLERANCE, largest_shift=shift, differences=differences)


def restored(rollback: Rollback) -> Check:
    """The rollback brought the earlier answers back, up to numeric ties."""
    real = [item for item in rollback.differences if item.gap is None or item.gap > rollback.tolerance]
    detail = (
        f"{rollback.compared} answers, {len(rollback.differences)} differ, {len(real)} of them beyond a numeric tie"
    )
    if real:
        detail += f"; the first: {real[0].question!r}: {real[0].before!r} became {real[0].after!r}"
    return Check(name="rollback restores the earlier answers", ok=not real, detail=detail)


def _shift(one: Answer, other: Answer) -> float:
    """Return the largest change in the log-probability of a generated token, as far as the two answers are the same."""
    largest = 0.0
    for token, counterpart in zip(one.tokens, other.tokens, strict=False):
        if token.text != counterpart.text:
            break
        largest = max(largest, abs(token.top[token.text] - counterpart.top[token.text]))
    return largest


def _gap(one: Answer, other: Answer) -> float | None:
    """Return the larger of the two runs' log-probability gaps between the first tokens that differ."""
    for token, counterpart in zip(one.tokens, other.tokens, strict=False):
        if token.text != counterpart.text:
            if counterpart.text not in token.top or token.text not in counterpart.top:
                return None
            return max(
                token.top[token.text] - token.top[counterpart.text],
                counterpart.top[counterpart.text] - counterpart.top[token.text],
            )
    return None
