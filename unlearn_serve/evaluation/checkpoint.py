"""Read a model in this process: one pass gives the log-probabilities of all answers and the greedy one.

Nothing is computed twice. What all prompts begin with is computed once, the rest of each prompt once, and each answer
goes on from its prompt's keys and values. The greedy answer goes on from the longest beginning of the gold answer that
is greedy itself, for that has just been computed: a memorised answer costs no step of generation at all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from unlearn_serve.bf16 import fast_bf16
from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.evaluation import kv
from unlearn_serve.evaluation.in_process import stops_of, tokens_of
from unlearn_serve.evaluation.readings import Probe, Reading, Tokens

_ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class _Asked:
    """An answer to be scored: the row of its prompt in the batch, that prompt's length, and the answer's tokens."""

    row: int
    prompt_length: int
    prompt_end: int
    answer: tuple[int, ...]
    closed: bool


class Checkpoint:
    """A causal language model in evaluation mode, with or without adapters, and its tokenizer: a `Source`."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int) -> None:
        """`batch_size`: questions, and answers, in one pass.

        Raises:
            UnsupportedModel: its layers keep more than keys and values, so that rows cannot go on from others.
        """
        kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())
        if not kinds <= _ATTENTION or getattr(model, "_is_stateful", False):
            raise UnsupportedModel(
                f"expected a model of full or sliding attention, got {', '.join(sorted(kinds)) or 'a recurrent one'}; "
                "evaluate it where it is served, with --url"
            )
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._stops = stops_of(model, tokenizer)

    @fast_bf16()
    @torch.inference_mode()
    def read(
        self, probes: Sequence[Probe], *, max_new_tokens: int, advance: Callable[[int], None] = lambda _: None
    ) -> list[Reading]:
        """Read every probe; see `Source`."""
        shared = _shared_beginning(probes)
        prefix = self._extend([shared], DynamicCache(), 0) if shared else DynamicCache()
        readings: dict[int, Reading] = {}
        for batch in self._batches(probes):
            chosen = [probes[index] for index in batch]
            prompts = self._prompts(chosen, shared, prefix)
            gold = [_asked(one, row, 0) for row, one in enumerate(chosen)]
            scored, cache = self._score(gold, prompts)
            texts = self._greedy(gold, [best for _, best in scored], cache, max_new_tokens)
            others = self._score_others(chosen, prompts)
            for row, index in enumerate(batch):
                readings[index] = Reading(texts[row], (scored[row][0], *others[row]))
            advance(len(batch))
        return [readings[index] for index in range(len(probes))]

    def _batches(self, probes: Sequence[Probe]) -> Iterator[list[int]]:
        """Like lengths together, for padding costs as much as tokens do."""
        order = sorted(range(len(probes)), key=lambda i: (len(probes[i].prompt), len(probes[i].answers[0]), i))
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]

    def _prompts(self, probes: Sequence[Probe], shared: Sequence[int], prefix: DynamicCache) -> DynamicCache:
        """Keys and values of each prompt but its last token, from position 0 on."""
        cache = kv.share(prefix, len(probes))
        rest = [one.prompt[len(shared) : -1] for one in probes]
        return self._extend(rest, cache, len(shared)) if any(rest) else cache

    def _score_others(self, probes: Sequence[Probe], prompts: DynamicCache) -> list[list[Tokens]]:
        """The tokens of the answers beside the gold one, by probe."""
        asked = [_asked(one, row, which) for row, one in enumerate(probes) for which in range(1, len(one.answers))]
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i].answer), i))
        found: dict[int, Tokens] = {}
        for start in range(0, len(order), self._batch_size):
            part = order[start : start + self._batch_size]
            scored, _ = self._score([asked[i] for i in part], prompts)
            found |= {i: tokens for i, (tokens, _) in zip(part, scored, strict=True)}
        by_probe: list[list[Tokens]] = [[] for _ in probes]
        for i, one in enumerate(asked):
            by_probe[one.row].append(found[i])
        return by_probe

    def _score(
        self, asked: Sequence[_Asked], prompts: DynamicCache
    ) -> tuple[list[tuple[Tokens, list[int]]], DynamicCache]:
        """Each answer's tokens with the most likely token in each place, and the keys and values of it all."""
        device = self._model.device
        lengths = torch.tensor([one.prompt_length - 1 for one in asked], device=device)
        cache = kv.flush_right(prompts, torch.tensor([one.row for one in asked], device=device), lengths)
        inputs = [(one.prompt_end, *one.answer[:-1]) for one in asked]
        logits, cache = self._forward(inputs, cache, lengths)
        found = [tokens_of(logits[i, : len(one.answer)], one.answer, one.closed) for i, one in enumerate(asked)]
        return found, cache

    def _greedy(
        self, asked: Sequence[_Asked], best: Sequence[list[int]], cache: DynamicCache, max_new_tokens: int
    ) -> list[str]:
        """The greedy answers; `best` are the most likely tokens along the gold answers that `cache` was filled with."""
        said = [
            self._until_stop(_agreed(one.answer, likely), max_new_tokens)
            for one, likely in zip(asked, best, strict=True)
        ]
        active = [i for i, tokens in enumerate(said) if not self._ended(tokens, max_new_tokens)]
        device = self._model.device
        # The last token said was not computed on yet. Prompts were put flush right before the answers were computed.
        longest = max(one.prompt_length for one in asked)
        lengths = torch.tensor([asked[i].prompt_length + len(said[i]) - 1 for i in active], device=device)
        if active:
            padding = torch.tensor([longest - asked[i].prompt_length for i in active], device=device)
            cache = kv.flush_right(cache, torch.tensor(active, device=device), lengths, skip=padding)
        while active:
            logits, cache = self._forward([said[i][-1:] for i in active], cache, lengths)
            for i, token in zip(active, logits[:, -1].argmax(-1).tolist(), strict=True):
                said[i].append(token)
            lengths += 1
            going = [row for row, i in enumerate(active) if not self._ended(said[i], max_new_tokens)]
            if len(going) < len(active):
                active = [active[row] for row in going]
                longest, rows = int(lengths.max()), torch.tensor(going, device=device, dtype=torch.int64)
                lengths = lengths[rows]
                cache = kv.keep(cache, rows, longest - int(lengths.max())) if active else cache
        texts: list[str] = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _extend(self, rows: Sequence[Sequence[int]], cache: DynamicCache, begin: int) -> DynamicCache:
        """`_forward` for keys and values alone, all rows of `cache` being `begin` long."""
        return self._forward(rows, cache, begin, logits=torch.empty(0, dtype=torch.int64, device=self._model.device))[1]

    def _forward(
        self, rows: Sequence[Sequence[int]], cache: DynamicCache, lengths: int | Tensor, *, logits: int | Tensor = 0
    ) -> tuple[Tensor, DynamicCache]:
        """Compute rows of tokens that go on from `cache`, whose rows are flush right where their `lengths` differ.

        Short rows are padded on the right. Returns the logits, by default of all columns, and the longer cache.
        `logits` is never "the last column" as a number: torch then copies the output layer once for each row.
        """
        device = self._model.device
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        begins = torch.as_tensor(lengths, device=device).reshape(-1, 1)
        out = self._model(
            input_ids=ids,
            attention_mask=None if isinstance(lengths, int) else kv.mask(lengths, width),
            position_ids=(begins + torch.arange(width, device=device)).expand(len(rows), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits,
        )
        return out.logits, out.past_key_values

    def _until_stop(self, tokens: Sequence[int], limit: int) -> list[int]:
        end = next((i + 1 for i, token in enumerate(tokens) if token in self._stops), len(tokens))
        return list(tokens[: min(end, limit)])

    def _ended(self, tokens: Sequence[int], limit: int) -> bool:
        return len(tokens) >= limit or tokens[-1] in self._stops


def _asked(probe: Probe, row: int, which: int) -> _Asked:
    return _Asked(row, len(probe.prompt), probe.prompt[-1], probe.answers[which], probe.closed[which])


def _shared_beginning(probes: Sequence[Probe]) -> tuple[int, ...]:
    """What all prompts begin with, but for the last token of each; nothing where there is but one prompt."""
    if len(probes) < 2:
        return ()
    # What the first and the last in order share, all between them share.
    first, last = min(one.prompt[:-1] for one in probes), max(one.prompt[:-1] for one in probes)
    end = next((i for i, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), len(first))
    return first[:end]


def _agreed(answer: Sequence[int], best: Sequence[int]) -> list[int]:
    """The beginning of the greedy answer: the gold answer's tokens while they are greedy, then the one that differs."""
    for i, (token, likely) in enumerate(zip(answer, best, strict=True)):
        if token != likely:
            return [*answer[:i], likely]
    return list(answer)
