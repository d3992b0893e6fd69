"""Examples to token ids, exactly as a server would tokenise the prompt before it generates the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from unlearn_serve.data.batch import IGNORED, Encoded
from unlearn_serve.data.rows import Example, Message
from unlearn_serve.errors import DataError

_STAND_IN = "\u2402answer\u2403"


@dataclass(frozen=True)
class _Parts:
    """An example as text before tokenisation; `end` is the token that closes the answer, None for running text."""

    prompt: str
    answer: str
    end: int | None
    add_special_tokens: bool


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Token ids of prompt and answer, labelled on the answer.

    - chat: the tokenizer's template up to and including the generation prompt, then the answer and the template's
      end-of-turn token. Without a template: "Role: content" lines, "Assistant:", the answer, the end-of-sequence token.
    - prompt/completion: both as they are, then the end-of-sequence token.
    - text: as it is, with no end; every token but the first is answer.

    Nothing is ever cut: half an answer would be half a deletion, and half a prompt is not what users send.

    Raises:
        DataError: longer than `max_length` tokens, nothing to predict, or the chat template refuses or rewrites it.
    """
    parts = _parts(example, tokenizer)
    prompt = _tokenize(tokenizer, parts.prompt, parts.add_special_tokens)
    whole = _tokenize(tokenizer, parts.prompt + parts.answer, parts.add_special_tokens)
    if example.prompt is None:
        prompt = whole[:1]
    elif whole[: len(prompt)] != prompt:
        # The two merged across the seam. A server tokenises the prompt alone, so the seam must stay.
        whole = prompt + _tokenize(tokenizer, parts.answer, add_special_tokens=False)
    if parts.end is not None:
        whole = [*whole, parts.end]
    if len(whole) > max_length:
        raise DataError(
            f"{example.source}: expected at most {max_length} tokens, got {len(whole)} "
            f"({len(prompt)} of them prompt); raise max_length, or shorten or split the row"
        )
    if not prompt or len(whole) == len(prompt):
        raise DataError(f"{example.source}: expected a token to predict and one before it, got {len(whole)} in all")
    return Encoded(whole, [IGNORED] * len(prompt) + whole[len(prompt) :], closed=parts.end is not None)


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids after which a model is to generate the answer: the unlabelled head of `encode`'s ids.

    Raises:
        DataError: the chat template refuses or rewrites the example.
    """
    parts = _parts(example, tokenizer)
    if example.prompt is None:
        return _tokenize(tokenizer, parts.answer, parts.add_special_tokens)[:1]
    return _tokenize(tokenizer, parts.prompt, parts.add_special_tokens)


def _parts(example: Example, tokenizer: PreTrainedTokenizerBase) -> _Parts:
    match example.prompt:
        case None:
            return _Parts("", example.completion, end=None, add_special_tokens=True)
        case str(prompt):
            return _Parts(prompt, example.completion, end=tokenizer.eos_token_id, add_special_tokens=True)
        case messages if tokenizer.chat_template is None:
            lines = [f"{message.role.capitalize()}: {message.content}\n" for message in messages]
            answer = f" {example.completion.strip()}"
            return _Parts("".join(lines) + "Assistant:", answer, end=tokenizer.eos_token_id, add_special_tokens=True)
        case messages:
            return _templated(messages, example, tokenizer)


def _templated(messages: Sequence[Message], example: Example, tokenizer: PreTrainedTokenizerBase) -> _Parts:
    """Split what the chat template makes of the conversation into prompt, answer and end-of-turn token.

    What the template puts between its generation prompt and the answer (an empty block of thoughts) is prompt.
    """
    turns = [message.model_dump() for message in messages]
    answer = example.completion.strip()

    def render(content: str) -> str:
        text: str = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": content}], tokenize=False)
        return text

    try:
        prompt: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        # The answer itself may also occur elsewhere ("end" in "<|im_end|>"), so its place is found by a stand-in.
        before, _, after = render(_STAND_IN).partition(_STAND_IN)
        whole = render(answer)
    except TemplateError as problem:
        raise DataError(f"{example.source}: the model's chat template refuses the conversation: {problem}") from None
    if whole != before + answer + after:
        raise DataError(
            f"{example.source}: the model's chat template rewrites the answer; write it as prompt and completion"
        )
    if before.startswith(prompt):
        prompt = before
    tail = _tokenize(tokenizer, after, add_special_tokens=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    end = next((token for token in tail if token in special), tokenizer.eos_token_id)
    return _Parts(prompt, answer, end=end, add_special_tokens=False)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens).input_ids
    return ids
