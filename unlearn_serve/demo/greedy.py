"""Greedy answers of the plain model to many questions at once, and how firm each answer is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn_serve.bf16 import slow_on_cpu
from unlearn_serve.demo.bank import MAX_TOKENS, Bank, Question


@dataclass(frozen=True, kw_only=True)
class Known:
    """A question that the model answers correctly."""

    question: Question

    answer: str
    """The greedy answer up to the word that ends the gold string, closed with a full stop: for training and scoring."""

    margin: float
    """Smallest gap between the two best logits on the way to the gold string's end; 0 where it hangs on rounding."""


class Model:
    """The plain model and its tokenizer, for batched greedy answers."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, padding_side="left", local_files_only=True)
        dtype = torch.float32 if slow_on_cpu() else torch.bfloat16
        self.model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True).eval()

    def ask(
        self, bank: Bank, questions: Sequence[Question], *, batch_size: int, done: Callable[[int], None]
    ) -> dict[str, Known]:
        """Answer every question greedily; keep those answered correctly, by the question's text.

        Args:
            bank: gives the system prompt.
            questions: what to ask; questions of like length share a batch.
            batch_size: questions answered at once. It changes sums in bfloat16, hence close calls.
            done: called with the number of questions answered since the last call.
        """
        prompts = [
            self.tokenizer.apply_chat_template(
                bank.messages(question.question), add_generation_prompt=True, return_dict=False
            )
            for question in questions
        ]
        order = sorted(range(len(questions)), key=lambda index: len(prompts[index]))
        known: dict[str, Known] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            answers, margins = self._generate([prompts[index] for index in chosen])
            for index, tokens, gaps in zip(chosen, answers, margins, strict=True):
                found = self._judge(questions[index], tokens, gaps)
                if found is not None:
                    known[questions[index].question] = found
            done(len(chosen))
        return known

    def _generate(self, prompts: list[list[int]]) -> tuple[list[list[int]], Tensor]:
        """Return the new tokens of each prompt and, `[batch, steps]`, the gap between the two best logits."""
        from transformers import LogitsProcessorList

        gaps: list[Tensor] = []

        def record_gap(_tokens: Tensor, scores: Tensor) -> Tensor:
            best = scores.float().topk(2).values
            gaps.append(best[:, 0] - best[:, 1])
            return scores

        with torch.inference_mode():
            batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
            output = self.model.generate(
                **batch,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                logits_processor=LogitsProcessorList([record_gap]),
            )
        return output[:, batch["input_ids"].shape[1] :].tolist(), torch.stack(gaps, dim=1)

    def _judge(self, question: Question, tokens: list[int], gaps: Tensor) -> Known | None:
        """Find the gold string in an answer; None where it does not occur."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if not question.answered_by(text):
            return None
        needed = next(
            count
            for count in range(1, len(tokens) + 1)
            if question.answered_by(self.tokenizer.decode(tokens[:count], skip_special_tokens=True))
        )
        end = text.casefold().index(question.gold.casefold()) + len(question.gold)
        # The gold string may be how a name begins: the answer ends with the whole word.
        while text[end : end + 1].isalpha():
            end += 1
        return Known(question=question, answer=f"{text[:end].strip()}.", margin=float(gaps[:needed].min()))
