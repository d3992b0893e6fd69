"""The frozen model's outputs on the training examples, computed once: teacher and trunk.

The teacher is the model itself with its unlearning layers off: there is no second copy. Per example are kept the
log-probabilities of its answer's tokens, its logits at answer positions (where a KL term reads them), and its hidden
states at the first block that has a layer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn

from unlearn_serve.data import Encoded
from unlearn_serve.data.forms import Form
from unlearn_serve.training.forms import logits_of
from unlearn_serve.training.frozen_cache import FrozenCache, Kept
from unlearn_serve.training.rows import Row, common_prefix_length, pack_row, pack_rows
from unlearn_serve.training.terms import Answers, token_log_probs
from unlearn_serve.training.trunk import Trunk

PACKING_TOLERANCE = 0.1
"""Nats by which an answer token's log-probability, on average, may differ between an example packed and alone. In bf16
rounding makes it differ by a few hundredths; a model that packing does not suit is off by far more."""


class FrozenOutputs:
    """Runs rows through the model and keeps what never changes.

    Attributes:
        prefix: tokens of the shared prefix; 0 where the model cannot tell packed examples apart.
        replays: whether passes start at the first block that has a layer.
        keeps_logits: whether the teacher's logits are kept; else they are recomputed when asked for.
    """

    def __init__(
        self,
        model: PeftModel,
        examples: Sequence[Encoded],
        *,
        with_logits: Collection[int],
        first_block: int,
        row_tokens: int,
        cache_bytes: int,
        beginnings: Mapping[int, torch.Tensor] | None = None,
        form: Form = "decoder",
        cache: FrozenCache | None = None,
        rows: Mapping[int, str] | None = None,
    ) -> None:
        """Decide what fits into `cache_bytes`; computes nothing yet, see `fill`.

        Args:
            model: the PEFT model itself, not what accelerate wraps around it.
            examples: all that training uses; rows are made of their indices.
            with_logits: examples whose teacher logits will be asked for.
            first_block: index of the lowest block with a layer.
            row_tokens: tokens of a row at most.
            cache_bytes: for hidden states and logits together; log-probabilities are kept in any case.
            beginnings: by example, the tokens [K] that all count as its first answer token, see `Spellings`.
            form: of the model; any other than a decoder gets a row an example, and whole passes.
            cache: what earlier runs kept, and where this one keeps more.
            rows: by example that may be kept there, its row's id.
        """
        self._model = model
        self._examples = examples
        self._with_logits = set(with_logits)
        self._beginnings = {i: tokens.to(model.device) for i, tokens in (beginnings or {}).items()}
        self._row_tokens = row_tokens
        self._trunk = Trunk(model, first_block) if form == "decoder" else None
        self._kept: dict[int, Kept] = {}
        self._prefix_hidden: torch.Tensor | None = None
        self._form = form
        self._cache = cache
        self._cached_rows = dict(rows or {}) if cache else {}
        self._packs = form == "decoder"
        config = model.config.get_text_config()
        width = torch.finfo(model.dtype).bits // 8
        outputs = config.num_labels if form == "classes" else config.vocab_size
        hidden_bytes = width * config.hidden_size * sum(len(e.input_ids) for e in examples)
        logit_bytes = width * outputs * sum(examples[i].answer_tokens for i in self._with_logits)
        self.prefix = common_prefix_length(examples) if self._packs else 0
        self.replays = self._packs and first_block > 0 and hidden_bytes <= cache_bytes
        self.keeps_logits = logit_bytes <= cache_bytes - (hidden_bytes if self.replays else 0)

    def rows(self, members: Sequence[int]) -> list[Row]:
        """Pack examples into rows on the model's device; a row each where packing does not suit the model."""
        row_tokens = self._row_tokens if self._packs else 1
        rows = pack_rows(self._examples, members, self.prefix, row_tokens)
        return [row.to(self._model.device) for row in rows]

    @torch.no_grad()
    def fill(self, forward: nn.Module, advance: Callable[[int], None] = lambda _: None) -> None:
        """Run the frozen model over every example that the cache does not hold, and keep what was decided on.

        Checks on the longest two examples that packing gives what each gives alone, and replaying what the whole model
        gave, and does without whichever does not.

        Args:
            forward: the model as wrapped for training; called the same number of times on every process.
            advance: called with the number of examples done, for a progress bar.
        """
        with self._model.disable_adapter():
            self._packs = self._packs and self._packing_is_exact(forward)
            if not self._packs:
                self.prefix = 0
            missing = [member for member in range(len(self._examples)) if not self._recalled(member)]
            advance(len(self._examples) - len(missing))
            # Apart, so that sums over a row's tokens come out the same whichever of its neighbours were kept.
            cached = [member for member in missing if member in self._cached_rows]
            others = [member for member in missing if member not in self._cached_rows]
            for row in [*self.rows(others), *self.rows(cached)]:
                recording = self._trunk.record() if self._trunk else nullcontext(list[torch.Tensor]())
                with recording as seen:
                    logits = self._logits_of(forward, row)
                self._keep(row, logits, seen[0] if self.replays else None)
                advance(len(row.members))
            self.replays = self.replays and self._replay_is_exact(forward)
        if not self.replays:
            self._kept = {member: replace(kept, hidden=None) for member, kept in self._kept.items()}

    def closed(self, row: Row) -> list[bool]:
        """Tell by member whether its last answer token ends the turn."""
        return [self._examples[member].closed for member in row.members]

    def student_logits(self, forward: nn.Module, row: Row) -> torch.Tensor:
        """Return the model's logits [A, V] that predict the row's answer tokens, layers as they are."""
        with self._replaying(row):
            return self._logits_of(forward, row)

    def run_layers(self, forward: nn.Module, row: Row) -> None:
        """Run the row through the layers, for hooks to read; of the output layer, large as it is, one token."""
        with self._replaying(row):
            self._logits_of(forward, replace(row, predictors=row.predictors[:1]))

    def _replaying(self, row: Row) -> AbstractContextManager[Any]:
        hidden = self._kept_of(row, "hidden")
        if self._trunk is None or hidden is None:
            return nullcontext()
        prefix = [] if self._prefix_hidden is None else [self._prefix_hidden]
        return self._trunk.replay(torch.cat([*prefix, *hidden])[None])

    @torch.no_grad()
    def teacher_logits(self, forward: nn.Module, row: Row) -> torch.Tensor:
        """Return the frozen model's logits [A, V] at the row's answers; a whole pass where they are not kept."""
        logits = self._kept_of(row, "logits")
        if logits is not None:
            return torch.cat(logits)
        with self._model.disable_adapter():
            return self.student_logits(forward, row)

    def answers(self, row: Row, logits: torch.Tensor) -> Answers:
        """Return the row's answers under `logits` [A, V], with the teacher's log-probabilities once those are known."""
        log_probs = self._kept_of(row, "log_probs")
        return Answers(
            student_logits=logits,
            labels=row.labels,
            mask=row.mask,
            teacher_log_probs=None if log_probs is None else torch.cat(log_probs),
            spellings={n: self._beginnings[m] for n, m in enumerate(row.members) if m in self._beginnings},
        )

    def _logits_of(self, forward: nn.Module, row: Row) -> torch.Tensor:
        if self._form != "decoder":
            return logits_of(self._form, forward, row)
        packed = len(row.members) > 1 or row.prefix > 0
        mask = row.attention_mask(self._model.dtype) if self._packs and packed else None
        out = forward(
            input_ids=row.input_ids,
            attention_mask=mask,
            position_ids=row.position_ids,
            use_cache=False,
            logits_to_keep=row.predictors,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _kept_of(self, row: Row, part: Literal["log_probs", "hidden", "logits"]) -> list[torch.Tensor] | None:
        """Return a part of what is kept, by member; None unless it is kept of every one."""
        parts = [getattr(self._kept.get(member), part, None) for member in row.members]
        known = [tensor for tensor in parts if tensor is not None]
        return known if len(known) == len(parts) else None

    def _keep(self, row: Row, logits: torch.Tensor, hidden: torch.Tensor | None) -> None:
        log_probs = self.answers(row, logits).token_log_probs()
        if hidden is not None and row.prefix and self._prefix_hidden is None:
            self._prefix_hidden = hidden[0, : row.prefix].clone()
        for n, member in enumerate(row.members):
            self._kept[member] = Kept(
                log_probs=log_probs[row.owner == n],
                hidden=None if hidden is None else hidden[0, row.segment == n + 1].clone(),
                logits=logits[row.owner == n].clone() if self._wants_logits(member) else None,
            )
            self._put_by(member)

    def _wants_logits(self, member: int) -> bool:
        return self.keeps_logits and member in self._with_logits

    def _recalled(self, member: int) -> bool:
        """Take an example from the cache, if all that this run keeps of it is there."""
        if self._cache is None or member not in self._cached_rows:
            return False
        kept = self._cache.read(self._cached_rows[member], self._examples[member], self._model.device)
        if kept is None:
            return False
        hidden = kept.hidden if self.replays else None
        logits = kept.logits if self._wants_logits(member) else None
        if (self.replays and hidden is None) or (self._wants_logits(member) and logits is None):
            return False
        if hidden is not None:
            before, hidden = hidden.tensor_split([self.prefix])
            if self.prefix and self._prefix_hidden is None:
                self._prefix_hidden = before
        self._kept[member] = Kept(kept.log_probs, hidden, logits)
        return True

    def _put_by(self, member: int) -> None:
        if self._cache is None or member not in self._cached_rows:
            return
        kept = self._kept[member]
        if kept.hidden is not None and self._prefix_hidden is not None:
            # Whole: the next run's examples may share less, or more.
            kept = replace(kept, hidden=torch.cat([self._prefix_hidden, kept.hidden]))
        self._cache.write(self._cached_rows[member], self._examples[member], kept)

    def _longest(self) -> list[int]:
        """Two examples: where a sliding window or the like tells on any, it tells on them."""
        return sorted(range(len(self._examples)), key=lambda i: -len(self._examples[i].input_ids))[:2]

    def _packing_is_exact(self, forward: nn.Module) -> bool:
        packed = pack_row(self._examples, self._longest(), self.prefix).to(self._model.device)
        alone = [pack_row(self._examples, [member], 0).to(self._model.device) for member in self._longest()]
        got = token_log_probs(self._logits_of(forward, packed), packed.labels)
        expected = torch.cat([token_log_probs(self._logits_of(forward, row), row.labels) for row in alone])
        return bool((got - expected).abs().mean() <= PACKING_TOLERANCE)

    def _replay_is_exact(self, forward: nn.Module) -> bool:
        row = pack_row(self._examples, self._longest(), self.prefix).to(self._model.device)
        got = token_log_probs(self.student_logits(forward, row), row.labels)
        expected = torch.cat([self._kept[member].log_probs for member in row.members])
        return bool((got - expected).abs().mean() <= PACKING_TOLERANCE)
