"""An editor in MEND's place: MEMIT on the last blocks' output maps, told to erase.

MEND (Mitchell et al., ICLR 2022) turns an edit's gradient into a weight update by networks that are meta-trained for
the very model to be edited, over many times the tokens that every other row of the table reads (docs/baselines.md). The
closest published editor without meta-training is MEMIT (Meng et al., ICLR 2023): it too gives a few feed-forward
networks a low-rank update that carries many edits at once and leaves what other inputs get. The blocks are MEND's, the
last three.

1.  Values. With h the output of the last edited block L at the positions that predict a forgotten answer's tokens y,
        u* = argmin over |u| <= clamp of  mean over y of -log(1 - p(y | ..., h + |h| u)) + decay mean |u|^2
    which for two classes is training on the other one, as EUL's authors told MEND to, and for text is the erasure
    objective of Patil, Hase & Bansal (ICLR 2024) in its bounded form (unlikelihood, Welleck et al., ICLR 2020).
2.  Weights. For each edited block l, lowest first, K [in, n] the inputs of its output map W at those positions,
        R = (h + |h| u* - h_now) / (L - l + 1)
        W <- W + R K^T (c C + K K^T)^-1,  C = mean over tokens of retained rows of k k^T
    the least-squares update that gives K its share of R and leaves what retained tokens read.
"""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.paper.baselines.meter import Meter
from benchmarks.paper.baselines.models import (
    classes_of,
    ffn_output_maps,
    fresh_folder,
    load_model,
    load_tokenizer,
    pad_id,
    save_model,
    weight_bytes,
)
from benchmarks.paper.baselines.passes import Pass
from benchmarks.paper.baselines.rows import Weighted, encode_rows
from benchmarks.paper.task import Budget, Task, Unlearned
from unlearn_serve.training.answers import encode_gold

# Shape legend: n positions that predict forgotten tokens, d hidden size, f width of the network, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class MendLike:
    """MEMIT with MEND's choice of weights; in fp32 whatever the task's precision, for an update is small."""

    name: str = "mend-like"

    blocks: int = 3
    """The last so many blocks' output maps are edited: MEND's choice."""

    value_steps: int = 25
    """Steps of Adam on u."""

    step_length: float = 0.1
    """Length of the first steps in units of |h|: Adam's learning rate times sqrt(d)."""

    clamp: float = 4.0
    """Longest u; as `decay` what MEMIT has for Llama models in EasyEdit (`clamp_norm_factor`, `v_weight_decay`)."""

    decay: float = 1e-3
    """Weight of |u|^2."""

    retain_weight: float = 0.9
    """c in units of f: how many retained tokens count against the edits. MEMIT's 15000 at f = 16384."""

    statistics_rows: int = 512
    """Retained rows, drawn by the seed, that C is taken over at most: tens of thousands of tokens for f = 1536."""

    whole_answers: bool = False
    """Erase whole answers even where a row names a gold string within; else only that (as `npo` does)."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Edit the original's weights; see `Baseline.run`."""
        folder = fresh_folder(task, self.name)
        tokenizer = load_tokenizer(task.original)
        model = load_model(task.original, task.kind, frozen=True)
        settings = {"kind": task.kind, "max_length": task.max_length, "classes": classes_of(model.config)}

        def passes(rows: Sequence[Weighted]) -> list[Pass]:
            size = task.fit.micro_batch_size or task.fit.batch_size
            starts = range(0, len(rows), size)
            return [Pass(model, rows[at : at + size], task.kind, pad_id(tokenizer)) for at in starts]

        forget = passes(self._forgotten(task, tokenizer, settings))
        drawn = random.Random(task.seed).sample(task.retain, min(self.statistics_rows, len(task.retain)))
        retain = passes(encode_rows(drawn, tokenizer, **settings))
        edited = dict(list(ffn_output_maps(model).items())[-self.blocks :])
        with Meter() as meter:
            moments = second_moments(model, [path for path, _ in edited.values()], retain)
            targets = [self._values(model, list(edited.values())[-1][0], batch, meter, budget) for batch in forget]
            for left, (path, linear) in zip(range(len(edited), 0, -1), edited.values(), strict=True):
                last = _block_of(list(edited.values())[-1][0])
                keys, residuals = self._keys_and_residuals(model, path, last, forget, targets)
                update = weight_update(keys, residuals / left, moments[path], self.retain_weight * keys.shape[1])
                with torch.no_grad():
                    linear.weight += (update.T if isinstance(linear, Conv1D) else update).to(linear.weight)
        save_model(model, tokenizer, folder / "model")
        bytes_ = weight_bytes(folder / "model")
        found = Unlearned(
            method=self.name,
            model=model,
            accounting=meter.accounting(
                stored_bytes=bytes_,
                served_bytes=bytes_,
                trainable_parameters=sum(linear.weight.numel() for _, linear in edited.values()),
            ),
            checkpoint=folder / "model",
            details={"settings": asdict(self), "maps": [path for path, _ in edited.values()]},
        )
        return found.written(folder)

    def _forgotten(self, task: Task, tokenizer: Any, settings: dict[str, Any]) -> list[Weighted]:
        rows = encode_rows(task.forget, tokenizer, **settings)
        if task.kind != "decoder" or self.whole_answers:
            return rows
        parts = [encode_gold(row, tokenizer, task.max_length) for row in task.forget]
        return [whole if found is None else Weighted(found[0]) for whole, found in zip(rows, parts, strict=True)]

    def _values(self, model: nn.Module, path: str, batch: Pass, meter: Meter, budget: Budget) -> torch.Tensor:
        """Return the states [n, d] that the last edited block should put out at the batch's positions."""
        block = _block_of(path)
        with torch.no_grad(), batch.states(model, block) as seen:
            batch.logits(model)
        h = seen[0]
        norm = h.norm(dim=-1, keepdim=True)
        u = torch.zeros_like(h, requires_grad=True)
        adam = torch.optim.Adam([u], lr=self.step_length / h.shape[-1] ** 0.5)
        for _ in range(self.value_steps):
            if meter.exhausts(budget):
                break
            with torch.enable_grad(), batch.shifted(model, block, norm * u):
                loss = unlikelihood(batch.logits(model), batch.labels).mean() + self.decay * u.square().sum(-1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                u *= (self.clamp / u.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        return (h + norm * u).detach()

    @torch.no_grad()
    def _keys_and_residuals(
        self, model: nn.Module, path: str, last: str, batches: Sequence[Pass], targets: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K^T [n, f] of the map at `path`, and what block `last` lacks of its targets, [n, d]: of all passes."""
        keys, residuals = [], []
        for batch, target in zip(batches, targets, strict=True):
            with batch.inputs(model, path) as read, batch.states(model, last) as seen:
                batch.logits(model)
            keys.append(read[0])
            residuals.append(target - seen[0])
        return torch.cat(keys), torch.cat(residuals)


def unlikelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Semantics: out[i] = -log(1 - softmax(logits[i])[labels[i]]); logits [n, V], labels int64 [n], out fp32 [n]."""
    logits = logits.float()
    others = logits.scatter(-1, labels[:, None], float("-inf"))
    return logits.logsumexp(-1) - others.logsumexp(-1)


def second_moments(model: nn.Module, paths: Sequence[str], batches: Sequence[Pass]) -> dict[str, torch.Tensor]:
    """Return by path C [f, f], fp64: the mean of k k^T over all tokens of the batches, k the input of the map there."""
    totals = dict.fromkeys(paths, torch.zeros(()))
    count = 0
    with torch.no_grad():
        for batch in batches:
            with ExitStack() as stack:
                read = {path: stack.enter_context(batch.inputs(model, path, everywhere=True)) for path in paths}
                batch.logits(model)
            for path, (k,) in read.items():
                totals[path] = totals[path] + k.double().T @ k.double()
            count += batch.tokens
    return {path: total / max(count, 1) for path, total in totals.items()}


def weight_update(keys: torch.Tensor, residuals: torch.Tensor, moment: torch.Tensor, weight: float) -> torch.Tensor:
    """Semantics: R K^T (weight C + K K^T)^-1, the least-squares solution of W' K = R with W' k small for retained k.

    Args:
        keys: K^T [n, f].
        residuals: R^T [n, d].
        moment: C [f, f]; 0 where nothing is retained.
        weight: in tokens.

    Returns:
        fp64 [d, f].
    """
    k, r = keys.double(), residuals.double()
    gram = weight * moment + k.T @ k
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, k.T @ r).T


def _block_of(path: str) -> str:
    """The module whose output is the residual stream after the network that the map at `path` ends."""
    return path.rpartition(".")[0].rpartition(".")[0]
