"""Read models that are no decoders: an encoder-decoder (T5), and a classification head on a decoder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from unlearn_serve.bf16 import fast_bf16
from unlearn_serve.evaluation.in_process import stops_of, tokens_of
from unlearn_serve.evaluation.readings import Probe, Reading


class EncoderDecoder:
    """An encoder-decoder in evaluation mode, with or without adapters, and its tokenizer: a `Source`.

    Each prompt goes through the encoder once; the greedy answer and every answer to be scored read what it left.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int) -> None:
        """`batch_size`: prompts, and answers, in one pass."""
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._start: int = model.config.decoder_start_token_id
        self._stops = stops_of(model, tokenizer)

    @fast_bf16()
    @torch.inference_mode()
    def read(
        self, probes: Sequence[Probe], *, max_new_tokens: int, advance: Callable[[int], None] = lambda _: None
    ) -> list[Reading]:
        """Read every probe; see `Source`."""

        def read_batch(batch: Sequence[Probe], prompts: Tensor) -> Iterator[Reading]:
            encoded = self._model.get_encoder()(input_ids=prompts, attention_mask=torch.ones_like(prompts))
            texts = self._greedy(encoded, len(batch), max_new_tokens)
            for row, (one, text) in enumerate(zip(batch, texts, strict=True)):
                logits = self._score(encoded.last_hidden_state[row : row + 1], one.answers)
                answers = zip(logits, one.answers, one.closed, strict=True)
                tokens = tuple(tokens_of(found[: len(answer)], answer, closed)[0] for found, answer, closed in answers)
                yield Reading(text, tokens)

        return _read(probes, self._batch_size, self._model.device, read_batch, advance)

    def _greedy(self, encoded: BaseModelOutput, rows: int, max_new_tokens: int) -> list[str]:
        """The greedy answers. `generate` would mind what the checkpoint says of sampling and repetition."""
        said: list[list[int]] = [[] for _ in range(rows)]
        last, cache = torch.full((rows, 1), self._start, device=self._model.device), None
        while not all(self._ended(tokens, max_new_tokens) for tokens in said):
            out = self._model(encoder_outputs=encoded, decoder_input_ids=last, past_key_values=cache, use_cache=True)
            cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
            for tokens, token in zip(said, last.flatten().tolist(), strict=True):
                if not self._ended(tokens, max_new_tokens):
                    tokens.append(token)
        texts: list[str] = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _ended(self, tokens: Sequence[int], limit: int) -> bool:
        return len(tokens) >= limit or (bool(tokens) and tokens[-1] in self._stops)

    def _score(self, states: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
        """The logits [answers, n, V] at each token of the answers to one prompt, whose encoder left `states` [1, T, d].

        The decoder is causal, so that padding on the right changes no token before it.
        """
        width = max(map(len, answers))
        inputs = [[self._start, *answer[:-1], *[0] * (width - len(answer))] for answer in answers]
        parts = [
            self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states.expand(len(rows), -1, -1)),
                decoder_input_ids=torch.tensor(rows, device=states.device),
            ).logits
            for rows in (inputs[at : at + self._batch_size] for at in range(0, len(inputs), self._batch_size))
        ]
        return torch.cat(parts)


class Classifier:
    """A model with a classification head, in evaluation mode, with or without adapters: a `Source`.

    An answer is one token, the class: its probability is the head's, the greedy answer is the likeliest class's name.
    """

    def __init__(self, model: Any, *, batch_size: int) -> None:
        """`batch_size`: prompts in one pass; one where the checkpoint names no padding token, as transformers wants."""
        self._model = model
        self._batch_size = 1 if model.config.get_text_config().pad_token_id is None else batch_size
        self._names: Mapping[int, str] = {int(number): name for number, name in model.config.id2label.items()}

    @fast_bf16()
    @torch.inference_mode()
    def read(
        self, probes: Sequence[Probe], *, max_new_tokens: int, advance: Callable[[int], None] = lambda _: None
    ) -> list[Reading]:
        """Read every probe; see `Source`."""
        del max_new_tokens  # a head generates none

        def read_batch(batch: Sequence[Probe], prompts: Tensor) -> Iterator[Reading]:
            logits = self._model(input_ids=prompts, attention_mask=torch.ones_like(prompts)).logits
            for of_prompt, one in zip(logits, batch, strict=True):
                tokens = tuple(tokens_of(of_prompt[None], answer, closed=False)[0] for answer in one.answers)
                yield Reading(self._names[int(of_prompt.argmax())], tokens, is_class=True)

        return _read(probes, self._batch_size, self._model.device, read_batch, advance)


def _read(
    probes: Sequence[Probe],
    batch_size: int,
    device: torch.device,
    read_batch: Callable[[Sequence[Probe], Tensor], Iterator[Reading]],
    advance: Callable[[int], None],
) -> list[Reading]:
    """Read batches of probes whose prompts are of one length, so that nothing is padded; in the probes' order.

    A head reads the last token that is no padding.
    """

    def length(index: int) -> int:
        return len(probes[index].prompt)

    readings: dict[int, Reading] = {}
    for _, found in groupby(sorted(range(len(probes)), key=length), key=length):
        same = list(found)
        for start in range(0, len(same), batch_size):
            indices = same[start : start + batch_size]
            batch = [probes[index] for index in indices]
            prompts = torch.tensor([one.prompt for one in batch], device=device)
            readings |= zip(indices, read_batch(batch, prompts), strict=True)
            advance(len(batch))
    return [readings[index] for index in range(len(probes))]
