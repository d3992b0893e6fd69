"""Hold every token that the clients got against the release that its response names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.attribution import TIE, Words, attribute, in_own_words, times_of
from benchmarks.soak.eras import Era
from benchmarks.soak.references import Asked, gaps_under
from benchmarks.soak.setting import Setting
from benchmarks.streams import StreamedRequest

Named = Sequence[tuple[StreamedRequest, Sequence[Era]]]
"""Answers, each with the eras that it names: none where what it names was not live."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found."""

    stale_by_answer: Sequence[int]
    """Stale tokens of each answer, in the order in which they were given."""
    stale_answers: Sequence[Mapping[str, Any]]
    """What is known of each answer that has some and names what was live."""
    misnamed_responses: int
    computed_afresh: int
    """Tokens."""
    through_swaps: int
    """Responses."""

    @property
    def stale(self) -> int:
        """Tokens that are not from the releases that their response names."""
        return sum(self.stale_by_answer)


def check(setting: Setting, answers: Named, *, afresh: int, say: Callable[[str], None]) -> Checked:
    """Hold all answers against what they name: by their words, and about `afresh` of them by computing them afresh.

    Computed afresh is every answer that is not all in its releases' own words, and judged by that alone; the others
    are evenly spread, preferably such as lived through a swap. An answer that names nothing is stale as a whole.
    """
    words = setting.words()
    by_words = {
        index: attribute(named, in_own_words(one, named, words), times_of(one))
        for index, (one, named) in enumerate(answers)
        if named and one.tokens
    }
    spanning = [index for index, found in by_words.items() if len({era.release for era in found.eras}) > 1]
    within_one = sorted(set(by_words) - set(spanning))
    chosen = {index for index, found in by_words.items() if found.stale}
    chosen.update(spread(spanning, afresh))
    chosen.update(spread(within_one, afresh - len(spanning)))
    stale = {index: len(one.token_ids) for index, (one, named) in enumerate(answers) if not named}
    misnamed = sum(count > 0 for count in stale.values())
    stale_answers = _stale_afresh(setting, {index: answers[index] for index in sorted(chosen)}, words, say)
    stale.update({index: one["stale"] for index, one in stale_answers.items()})
    return Checked(
        stale_by_answer=[stale.get(index, 0) for index in range(len(answers))],
        stale_answers=list(stale_answers.values()),
        misnamed_responses=misnamed,
        computed_afresh=sum(len(answers[index][0].token_ids) for index in chosen),
        through_swaps=len(spanning),
    )


def spread(indices: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the indices, evenly spread."""
    if count >= len(indices):
        return list(indices)
    return [indices[number * len(indices) // count] for number in range(max(count, 0))]


def _stale_afresh(
    setting: Setting,
    picked: Mapping[int, tuple[StreamedRequest, Sequence[Era]]],
    words: Words,
    say: Callable[[str], None],
) -> dict[int, dict[str, Any]]:
    asked: dict[str, list[Asked]] = {}
    for request, named in picked.values():
        for release in {era.release for era in named}:
            asked.setdefault(release, []).append(_asked(request))
    gaps = gaps_under(setting, asked, say=say)
    stale_answers = {}
    for index, (request, named) in picked.items():
        near = {era.release: gaps[era.release][_asked(request)] for era in named}
        fits = {release: [gap <= TIE for gap in own] for release, own in near.items()}
        found = attribute(named, fits, times_of(request))
        if found.stale:
            stale_answers[index] = {
                "stale": found.stale,
                "begun_under": (request.release, request.generation),
                "ended_under": request.fingerprint,
                "prompt": list(request.prompt),
                "token_ids": request.token_ids,
                "times": times_of(request),
                "given_to_generations": [era.generation for era in found.eras],
                "eras": [(era.generation, era.release, era.begins) for era in named],
                "in_own_words": in_own_words(request, named, words),
                "gaps": near,
            }
    return stale_answers


def _asked(request: StreamedRequest) -> Asked:
    return tuple(request.prompt), tuple(request.token_ids)
