"""Hold every token that the clients got against the release that its response names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.attribution import TIE, Words, arrivals_of, attribute, in_own_words
from benchmarks.soak.eras import Era, named_eras
from benchmarks.soak.references import Asked, gaps_under
from benchmarks.soak.setting import Setting
from benchmarks.streams import StreamedRequest

Named = Sequence[tuple[StreamedRequest, Sequence[Era]]]
"""Answers with at least one token, each with the eras that it names."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found; counts of tokens, but for the responses."""

    stale: int
    stale_answers: Sequence[Mapping[str, Any]]
    """What is known of each answer with stale tokens, but for those that are misnamed."""
    misnamed_responses: int
    computed_afresh: int
    through_swaps: int
    """Responses."""


def check(
    setting: Setting,
    requests: Sequence[StreamedRequest],
    eras: Sequence[Era],
    *,
    afresh: int,
    say: Callable[[str], None],
) -> Checked:
    """Check all answers by their words, and about `afresh` of them, evenly spread, by computing them afresh.

    Answers that lived through a swap are preferred, and all with a word of another release are among them.
    """
    answered = [(request, named_eras(request, eras)) for request in requests if request.tokens]
    misnamed = [request for request, named in answered if not named]
    named = [(request, found) for request, found in answered if found]
    words = setting.words()
    by_words = [attribute(found, in_own_words(one, found, words), arrivals_of(one)) for one, found in named]
    spanning = [index for index, found in enumerate(by_words) if len({era.release for era in found.eras}) > 1]
    chosen = {index for index, found in enumerate(by_words) if found.stale}
    others = [index for index in range(len(named)) if index not in set(spanning)]
    chosen.update(spread(spanning, afresh))
    chosen.update(spread(others, afresh - len(chosen)))
    picked = [named[index] for index in sorted(chosen)]
    # Those with a word of another release are all among the picked.
    stale_answers = _stale_afresh(setting, picked, words, say)
    return Checked(
        stale=sum(one["stale"] for one in stale_answers) + sum(len(request.token_ids) for request in misnamed),
        stale_answers=stale_answers,
        misnamed_responses=len(misnamed),
        computed_afresh=sum(len(request.token_ids) for request, _ in picked),
        through_swaps=len(spanning),
    )


def spread(indices: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the indices, evenly spread."""
    if count >= len(indices):
        return list(indices)
    return [indices[number * len(indices) // count] for number in range(max(count, 0))]


def _stale_afresh(setting: Setting, picked: Named, words: Words, say: Callable[[str], None]) -> list[dict[str, Any]]:
    asked: dict[str, list[Asked]] = {}
    for request, named in picked:
        for release in {era.release for era in named}:
            asked.setdefault(release, []).append(_asked(request))
    gaps = gaps_under(setting, asked, say=say)
    stale_answers = []
    for request, named in picked:
        own = in_own_words(request, named, words)
        near = {release: gaps[release][_asked(request)] for release in own}
        fits = {
            release: [said and gap <= TIE for said, gap in zip(own[release], near[release], strict=True)]
            for release in own
        }
        found = attribute(named, fits, arrivals_of(request))
        if found.stale:
            stale_answers.append(
                {
                    "stale": found.stale,
                    "begun_under": (request.release, request.generation),
                    "ended_under": request.fingerprint,
                    "prompt": list(request.prompt),
                    "token_ids": request.token_ids,
                    "arrivals": arrivals_of(request),
                    "given_to_generations": [era.generation for era in found.eras],
                    "eras": [(era.generation, era.release, era.begins, era.ends) for era in named],
                    "in_own_words": own,
                    "gaps": near,
                }
            )
    return stale_answers


def _asked(request: StreamedRequest) -> Asked:
    return tuple(request.prompt), tuple(request.token_ids)
