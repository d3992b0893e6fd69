"""Which release each token of an answer is from.

The releases of a soak share no words (see marked.py), so a word of its own shows which release a token is from. What is
left shows on a server that was started on the release and has never swapped: whether a token was computed with that
release's keys and values, and by all of its layers, and what is no word of its own. A greedy token t after the context
c is from release R where nothing is likelier there,

    gap_R(t | c) = max_v log p_R(v | c) - log p_R(t | c) <= TIE.

An answer that names the releases R_1, ..., R_k, in the order in which they were live, is theirs if it can be cut into k
consecutive pieces (some perhaps empty) whose tokens fit their own release, and if no token came before its release was
live, or long after: by the time at which the answer last came token by token, for what comes in one go has waited.
The cut with the fewest tokens that do not fit is taken; those are *stale*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.soak.eras import CLOCK_SLACK, READING_LAG, Era, waiting_since
from benchmarks.streams import StreamedRequest

TIE = 0.25
"""As in tests/serving/test_swap.py: in bfloat16 another order of sums may let two candidates so close change places."""

Words = Mapping[str, frozenset[int]]
"""Release -> its tokens."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Where the tokens of one answer are from."""

    eras: Sequence[Era]
    """The era that each token was given to."""
    stale: int
    """How many tokens do not fit it."""


Times = Sequence[tuple[float, float]]
"""Of each token, from when on it may have been on its way, and when the client had it; Unix seconds."""


def attribute(named: Sequence[Era], fits: Mapping[str, Sequence[bool]], times: Times) -> Attribution:
    """Cut an answer into the pieces of the eras that it names.

    Args:
        named: the eras that the response names, in order; at least one.
        fits: by release, which of the answer's tokens can be from it.
        times: of each token.
    """
    misfits = [
        [not (fits[era.release][token] and _in_time(era, *when)) for era in named] for token, when in enumerate(times)
    ]
    # fewest[k]: of the tokens so far, how many do not fit if the last of them is given to era k.
    fewest = [0] * len(named)
    earlier: list[list[int]] = []
    for row in misfits:
        best, chosen, reached = len(times) + 1, 0, []
        for place, misfit in enumerate(row):
            if fewest[place] < best:
                best, chosen = fewest[place], place
            reached.append((best + misfit, chosen))
        earlier.append([chosen for _, chosen in reached])
        fewest = [count for count, _ in reached]
    place = min(range(len(named)), key=fewest.__getitem__)
    stale = fewest[place]
    given = []
    for chosen_before in reversed(earlier):
        given.append(named[place])
        place = chosen_before[place]
    return Attribution(eras=given[::-1], stale=stale)


def times_of(request: StreamedRequest) -> list[tuple[float, float]]:
    """Return the times of each token, see `Times`."""
    times: list[tuple[float, float]] = []
    for since, (at, count) in zip(waiting_since(request), request.tokens, strict=True):
        times += [(since, at)] * (count - len(times))
    return times


def in_own_words(request: StreamedRequest, named: Sequence[Era], words: Words) -> dict[str, list[bool]]:
    """Return, by release, which tokens are among its words."""
    return {era.release: [token in words[era.release] for token in request.token_ids] for era in named}


def _in_time(era: Era, since: float, arrival: float) -> bool:
    return era.begins - CLOCK_SLACK <= arrival and min(since, arrival - READING_LAG) <= era.ends
