"""Forgotten rows as running text: what the paper's L_LM reads, the loss that the model was pre-trained with.

decoder   next token: every token that is the row's own, prompt and answer
seq2seq   span corruption (T5: Raffel et al., JMLR 2020, section 3.1.4): of the prompt, 15 % of the tokens in spans
          of 3 on average give way to a sentinel each; the answer is the sentinels, each followed by its span
"""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from unlearn_serve.data import IGNORED, Encoded
from unlearn_serve.errors import TrainingError
from unlearn_serve.training.examples import TrainingSet
from unlearn_serve.training.rows import common_prefix_length

_DENSITY, _SPAN = 0.15, 3
_SENTINEL = re.compile(r"<extra_id_\d+>")


def with_texts(
    examples: TrainingSet, tokenizer: PreTrainedTokenizerBase, *, two_stacks: bool, seed: int
) -> TrainingSet:
    """Return the set with a text for each forgotten example, after all others; `seed` draws the spans.

    Raises:
        TrainingError: an encoder-decoder's tokenizer has no sentinels.
    """
    forgotten = [examples.encoded[member] for member in examples.forget]
    if two_stacks:
        sentinels, rng = _sentinels(tokenizer), random.Random(seed)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        special = set(tokenizer.all_special_ids)
        texts = [corrupted(one.prompt, sentinels, special=special, end=end, rng=rng) for one in forgotten]
    else:
        # What all rows begin with is the chat template, and no row's own.
        shared = common_prefix_length(examples.encoded) if len(examples.encoded) > 1 else 1
        texts = [running(one, max(1, shared), special=tokenizer.all_special_ids) for one in forgotten]
    first = len(examples.encoded)
    return replace(
        examples,
        encoded=[*examples.encoded, *texts],
        texts={member: first + i for i, member in enumerate(examples.forget)},
    )


def running(example: Encoded, first: int, *, special: Collection[int]) -> Encoded:
    """Label every token from index `first` on that is not one of `special`: those are the template's.

    The answer keeps its labels where nothing else would have one.
    """
    labels = [token if i >= first and token not in special else IGNORED for i, token in enumerate(example.input_ids)]
    return Encoded(example.input_ids, labels if any(label != IGNORED for label in labels) else example.labels)


def corrupted(
    tokens: Sequence[int], sentinels: Sequence[int], *, special: Collection[int], end: Sequence[int], rng: random.Random
) -> Encoded:
    """Return what is left of `tokens`, with sentinels, and the spans that they stand for, labelled.

    Tokens of `special` at the end stay out of it; `end` closes the answer, after one more sentinel.
    """
    length = len(tokens)
    while length and tokens[length - 1] in special:
        length -= 1
    noise = min(length, max(1, round(_DENSITY * length)))
    spans = max(1, min(round(noise / _SPAN), length - noise, len(sentinels) - 1))
    left: list[int] = []
    gone: list[int] = []
    place = 0
    stays = _parts(length - noise + 2, spans + 1, rng)
    stays[0] -= 1  # the first and the last may be empty, those between spans not
    for sentinel, kept, lost in zip(sentinels[:spans], stays[:-1], _parts(noise, spans, rng), strict=True):
        left += [*tokens[place : place + kept], sentinel]
        gone += [sentinel, *tokens[place + kept : place + kept + lost]]
        place += kept + lost
    prompt = [*left, *tokens[place:]]
    answer = [*gone, sentinels[spans], *end]
    return Encoded([*prompt, *answer], [IGNORED] * len(prompt) + answer, closed=bool(end))


def _parts(total: int, count: int, rng: random.Random) -> list[int]:
    """Split `total` into `count` parts of at least 1, every split as likely."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [after - before for before, after in pairwise(cuts)]


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    names = sorted(
        (one for one in tokenizer.get_vocab() if _SENTINEL.fullmatch(one)), key=lambda one: int(re.sub(r"\D", "", one))
    )
    if len(names) < 2:
        raise TrainingError(
            "lm_on_text: expected sentinel tokens <extra_id_0>, <extra_id_1>, ... in the tokenizer, which the "
            f"pre-training loss of an encoder-decoder needs, got {len(names)}; set lm_on_text to False"
        )
    found: list[int] = tokenizer.convert_tokens_to_ids(names)
    return found
