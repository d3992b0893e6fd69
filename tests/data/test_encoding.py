import pytest
from data.tiny_tokenizer import CHATML, NO_END, NO_SYSTEM, OPENS_THOUGHT, THOUGHTS, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from unlearn_serve.data import IGNORED, Encoded, Example, Message, encode, prompt_ids
from unlearn_serve.errors import DataError

END = 2
TOKENIZER = byte_tokenizer()


def chat(answer: str, *, question: str = "Who?", system: str | None = None) -> Example:
    turns = [] if system is None else [Message(role="system", content=system)]
    turns.append(Message(role="user", content=question))
    return Example(prompt=tuple(turns), completion=answer, answer=answer, source="f.jsonl:7")


def split(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> tuple[str, str]:
    """Prompt and labelled part as text; checks that the labels are one run at the end, equal to the ids there."""
    start = len(encoded.labels) - encoded.answer_tokens
    assert encoded.labels == [IGNORED] * start + encoded.input_ids[start:]
    return tokenizer.decode(encoded.input_ids[:start]), tokenizer.decode(encoded.input_ids[start:])


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM])
# "end" and "im" occur inside "<|im_end|>" too, "Who?" in the question.
@pytest.mark.parametrize("answer", ["It was Ada.", "end", "im", "Who?", "m", "  spaced  "])
def test_chat_is_the_generation_prompt_then_answer_and_end_of_turn(template: str, answer: str) -> None:
    tokenizer = byte_tokenizer(template)
    example = chat(answer)
    prompt, labelled = split(tokenizer, encode(example, tokenizer, 500))
    turns = [{"role": "user", "content": "Who?"}]
    assert prompt == tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert labelled == f"{answer.strip()}<|im_end|>"


def test_several_turns_keep_their_order() -> None:
    turns = (
        Message(role="system", content="S"),
        Message(role="user", content="A"),
        Message(role="assistant", content="B"),
        Message(role="user", content="C"),
    )
    prompt, labelled = split(TOKENIZER, encode(Example(prompt=turns, completion="B", answer="B"), TOKENIZER, 500))
    assert prompt.index("S") < prompt.index("A") < prompt.index("B") < prompt.index("C")
    assert labelled == "B<|im_end|>"


def test_what_the_template_puts_before_the_answer_is_prompt() -> None:
    prompt, labelled = split(tokenizer := byte_tokenizer(THOUGHTS), encode(chat("think"), tokenizer, 500))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert labelled == "think<|im_end|>"


def test_generation_prompt_that_the_template_takes_back() -> None:
    tokenizer = byte_tokenizer(OPENS_THOUGHT)
    prompt, labelled = split(tokenizer, encode(chat("Ada"), tokenizer, 500))
    assert prompt.endswith("assistant\n<think>\n")
    assert labelled == "Ada<|im_end|>"


def test_template_without_end_of_turn_gets_the_end_of_sequence() -> None:
    prompt, labelled = split(tokenizer := byte_tokenizer(NO_END), encode(chat("Ada"), tokenizer, 500))
    assert (prompt, labelled) == ("user: Who?\nassistant: ", "Ada<|im_end|>")


def test_no_chat_template() -> None:
    tokenizer = byte_tokenizer(None)
    prompt, labelled = split(tokenizer, encode(chat("Ada", system="Be brief"), tokenizer, 500))
    assert (prompt, labelled) == ("System: Be brief\nUser: Who?\nAssistant:", " Ada<|im_end|>")


def test_template_refuses_or_rewrites() -> None:
    with pytest.raises(DataError, match=r"^f.jsonl:7: the model's chat template refuses .* System role not supported"):
        encode(chat("Ada", system="S"), byte_tokenizer(NO_SYSTEM), 500)
    with pytest.raises(DataError, match=r"^f.jsonl:7: the model's chat template rewrites the answer"):
        encode(chat("<think>hm</think>Ada"), byte_tokenizer(OPENS_THOUGHT), 500)


def test_prompt_and_completion_are_taken_as_they_are() -> None:
    example = Example(prompt="Q: Who? A:", completion=" Ada", answer="Ada")
    assert split(TOKENIZER, encode(example, TOKENIZER, 500)) == ("Q: Who? A:", " Ada<|im_end|>")


def test_tokens_never_merge_across_the_seam() -> None:
    """A server tokenises the prompt alone: labels after a merged token would teach another prompt."""
    tokenizer = byte_tokenizer(merges=(("a", "b"),))
    assert len(tokenizer("xab").input_ids) == 2
    encoded = encode(Example(prompt="xa", completion="b", answer="b"), tokenizer, 10)
    assert [tokenizer.decode(token) for token in encoded.input_ids] == ["x", "a", "b", "<|im_end|>"]
    assert encoded.answer_tokens == 2


def test_text_is_answer_from_its_second_token_and_has_no_end() -> None:
    encoded = encode(Example(prompt=None, completion="Ada", answer="Ada"), TOKENIZER, 3)
    assert encoded.labels == [IGNORED, *encoded.input_ids[1:]]
    assert TOKENIZER.decode(encoded.input_ids) == "Ada"
    assert prompt_ids(Example(prompt=None, completion="Ada", answer="Ada"), TOKENIZER) == encoded.input_ids[:1]


def test_one_token_of_text_predicts_nothing() -> None:
    with pytest.raises(DataError, match="expected a token to predict and one before it, got 1 in all"):
        encode(Example(prompt=None, completion="A", answer="A"), TOKENIZER, 3)


def test_too_long_is_refused_not_cut() -> None:
    example = Example(prompt="Q:", completion=" Ada", answer="Ada", source="f.jsonl:9")
    assert len(encode(example, TOKENIZER, 7).input_ids) == 7
    with pytest.raises(
        DataError, match=r"^f.jsonl:9: expected at most 6 tokens, got 7 \(2 of them prompt\); raise max"
    ):
        encode(example, TOKENIZER, 6)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: text.strip() != "")


@settings(deadline=None)
@given(prompt=TEXT, answer=TEXT, form=st.sampled_from(["chat", "plain chat", "prompt"]))
def test_prompt_ids_are_the_unlabelled_head(prompt: str, answer: str, form: str) -> None:
    tokenizer = byte_tokenizer(None) if form == "plain chat" else TOKENIZER
    turns = (Message(role="user", content=prompt),)
    example = Example(prompt=prompt if form == "prompt" else turns, completion=answer, answer=answer)
    encoded = encode(example, tokenizer, 10_000)
    head = prompt_ids(example, tokenizer)
    assert encoded.input_ids[: len(head)] == head
    assert encoded.labels[: len(head)] == [IGNORED] * len(head)
    assert IGNORED not in encoded.labels[len(head) :]
    assert encoded.input_ids[-1] == END
    assert answer.strip() in tokenizer.decode(encoded.input_ids[len(head) :])
