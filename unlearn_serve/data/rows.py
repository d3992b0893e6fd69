"""One row of a data set in its three forms (chat, prompt with completion, plain text), and the example it means."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from unlearn_serve.errors import DataError

_SHOWN = 60


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write the text or remove the row")
    return text


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"expected text that UTF-8 can hold, got {_shown(text)}") from None
    return text


Unicode = Annotated[str, AfterValidator(_encodable)]
Filled = Annotated[Unicode, AfterValidator(_not_blank)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_encodable)]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: Name | None = None
    answer: Filled | None = None


class _AskedRow(_Row):
    """A row with a prompt: the same question may also have other right answers, and wrong ones."""

    paraphrased_answer: Filled | None = None
    perturbed_answer: Annotated[list[Filled], Field(min_length=1)] | None = None

    def other_answers(self, right: str) -> tuple[str | None, tuple[str, ...]]:
        """The right answer in other words, and the wrong answers; `right` is the answer itself.

        Raises:
            DataError: a wrong answer that is the right one.
        """
        wrong = tuple(self.perturbed_answer or ())
        for answer in wrong:
            if answer.strip() in (right.strip(), (self.paraphrased_answer or right).strip()):
                raise DataError(f"perturbed_answer: expected wrong answers, got the right one, {_shown(answer)}")
        return self.paraphrased_answer, wrong


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Unicode


@dataclass(frozen=True, kw_only=True)
class Example:
    """One thing to forget, to retain or to ask.

    Attributes:
        prompt: the turns before the answer (chat), the text before it (prompt), or None (plain text: no prompt).
        completion: the answer in full, or the plain text; never blank.
        answer: gold string that a correct answer contains; the stripped completion where the row names none.
        paraphrased_answer: the right answer in other words, in full; None where the row gives none.
        perturbed_answers: wrong answers in full, alike in form to the right one: for the truth ratio; may be empty.
        id: unique in its file; the line number where the row names none.
        source: file and line, for messages.
    """

    prompt: tuple[Message, ...] | str | None
    completion: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    id: str = "1"
    source: str = "example"


class ChatRow(_AskedRow):
    """{"messages": [{"role": ..., "content": ...}, ...]}: the last turn is the assistant's, and the answer."""

    messages: Annotated[list[Message], Field(min_length=2)]

    @model_validator(mode="after")
    def _ends_in_answer(self) -> Self:
        last = self.messages[-1]
        if last.role != "assistant":
            raise ValueError(f"messages: expected the last role to be 'assistant' (the answer), got {last.role!r}")
        if not last.content.strip():
            raise ValueError("messages: the assistant's answer is empty; write it or remove the row")
        return self

    def parts(self) -> tuple[tuple[Message, ...], str]:
        """The turns before the answer, and the answer."""
        return tuple(self.messages[:-1]), self.messages[-1].content


class PromptRow(_AskedRow):
    """{"prompt": ..., "completion": ...}: taken as they are, outside any chat template."""

    prompt: Filled
    completion: Filled

    def parts(self) -> tuple[str, str]:
        """The prompt and the completion."""
        return self.prompt, self.completion


class TextRow(_Row):
    """{"text": ...}: running text."""

    text: Filled

    def parts(self) -> tuple[None, str]:
        """No prompt, and the text."""
        return None, self.text

    def other_answers(self, right: str) -> tuple[None, tuple[str, ...]]:
        """Running text answers nothing, so there are none."""
        del right
        return None, ()


def parse_row(found: object, *, source: str, line: int) -> Example:
    """Turn one JSON value into an `Example`; the row's form follows from its keys.

    Raises:
        DataError: not an object, no known form, unknown keys, wrong types, or a blank answer.
    """
    if not isinstance(found, dict):
        raise DataError(f"{source}: expected a JSON object per line, got {_shown(found)}")
    form = _form(found, source)
    try:
        row = form.model_validate(found)
        prompt, completion = row.parts()
        paraphrased, perturbed = row.other_answers(completion)
    except ValidationError as problems:
        raise DataError(f"{source}: {_first_problem(problems)}") from None
    except DataError as problem:
        raise DataError(f"{source}: {problem}") from None
    return Example(
        prompt=prompt,
        completion=completion,
        answer=(row.answer or completion).strip(),
        paraphrased_answer=paraphrased,
        perturbed_answers=perturbed,
        id=row.id or str(line),
        source=source,
    )


def _form(found: dict[str, Any], source: str) -> type[ChatRow] | type[PromptRow] | type[TextRow]:
    if "messages" in found:
        return ChatRow
    if "prompt" in found or "completion" in found:
        return PromptRow
    if "text" in found:
        return TextRow
    keys = ", ".join(map(repr, found)) or "none"
    raise DataError(f"{source}: expected the keys 'messages', or 'prompt' and 'completion', or 'text', got {keys}")


def _first_problem(problems: ValidationError) -> str:
    """Pydantic's first complaint on one line: where, what was expected, what was got."""
    first = problems.errors(include_url=False)[0]
    # The keys are a stranger's: an unprintable one must not break the line.
    where = ".".join(part if part.isprintable() else repr(part) for part in map(str, first["loc"]))
    prefix = f"{where}: " if where else ""
    match first["type"]:
        case "extra_forbidden":
            return f"{prefix}unknown key; remove it"
        case "missing":
            return f"{prefix}missing; add it"
        case "value_error":
            return prefix + first["msg"].removeprefix("Value error, ")
        case _:
            return f"{prefix}{first['msg'][:1].lower()}{first['msg'][1:]}, got {_shown(first['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
