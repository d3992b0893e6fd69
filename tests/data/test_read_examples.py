import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_serve.data import Example, Message, data_ref, read_examples
from unlearn_serve.data.jsonl import MAX_LINE_BYTES
from unlearn_serve.data.rows import parse_row
from unlearn_serve.errors import DataError

GOOD = '{"prompt": "q", "completion": " a"}'


def write(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def test_three_forms(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It was Ada."}]
    path = write(
        tmp_path,
        json.dumps({"messages": turns, "answer": "Ada", "id": "ada-1"}),
        json.dumps({"prompt": "Q: Who? A:", "completion": " Ada "}),
        json.dumps({"text": "Ada wrote it."}),
    )
    assert read_examples(path) == [
        Example(
            prompt=(Message(role="user", content="Who?"),),
            completion="It was Ada.",
            answer="Ada",
            id="ada-1",
            source=f"{path}:1",
        ),
        Example(prompt="Q: Who? A:", completion=" Ada ", answer="Ada", id="2", source=f"{path}:2"),
        Example(prompt=None, completion="Ada wrote it.", answer="Ada wrote it.", id="3", source=f"{path}:3"),
    ]


def test_other_answers_right_and_wrong(tmp_path: Path) -> None:
    row = {"prompt": "Q: Who? A:", "completion": " Ada", "paraphrased_answer": " It was Ada"}
    path = write(tmp_path, json.dumps({**row, "perturbed_answer": [" Bob", " Carl"]}), json.dumps(row))
    first, second = read_examples(path)
    assert (first.paraphrased_answer, first.perturbed_answers) == (" It was Ada", (" Bob", " Carl"))
    assert second.perturbed_answers == ()


def test_last_line_may_lack_its_end_and_crlf_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(GOOD.encode() + b"\r\n" + GOOD.encode())
    assert [example.id for example in read_examples(path)] == ["1", "2"]


def chat(*turns: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected a JSON object, got a blank line; remove it"),
        ('{"text": ', "expected one JSON object on the line, got: Expecting value"),
        ('{"text": "a"} {"text": "b"}', "expected one JSON object on the line, got: Extra data"),
        ('{"text": "a", "text": "b"}', "key 'text' twice in one object"),
        ("[" * 100_000, "expected one JSON object on the line, got: "),
        ('["text"]', "expected a JSON object per line, got ['text']"),
        ("{}", "expected the keys 'messages', or 'prompt' and 'completion', or 'text', got none"),
        ('{"question": "q"}', "or 'text', got 'question'"),
        ('{"prompt": "q"}', "completion: missing; add it"),
        ('{"completion": "a"}', "prompt: missing; add it"),
        ('{"prompt": "q", "completion": "  "}', "completion: is empty; write the text or remove the row"),
        ('{"prompt": "", "completion": "a"}', "prompt: is empty"),
        ('{"text": "\\n"}', "text: is empty"),
        ('{"text": 3}', "text: input should be a valid string, got 3"),
        ('{"text": "\\ud800"}', "text: expected text that UTF-8 can hold, got '\\ud800'"),
        ('{"text": "a", "labels": []}', "labels: unknown key; remove it"),
        ('{"text": "a", "la\\nbels": []}', "'la\\nbels': unknown key; remove it"),
        ('{"text": "a", "answer": " "}', "answer: is empty"),
        ('{"text": "a", "id": ""}', "id: string should have at least 1 character, got ''"),
        ('{"prompt": "q", "completion": "a", "perturbed_answer": []}', "perturbed_answer: list should have at least 1"),
        (
            '{"prompt": "q", "completion": "a", "perturbed_answer": "b"}',
            "perturbed_answer: input should be a valid list",
        ),
        ('{"prompt": "q", "completion": "a", "perturbed_answer": [" "]}', "perturbed_answer.0: is empty"),
        (
            '{"prompt": "q", "completion": "a", "perturbed_answer": ["b", " a"]}',
            "perturbed_answer: expected wrong answers, got the right one, ' a'",
        ),
        ('{"text": "a", "perturbed_answer": ["b"]}', "perturbed_answer: unknown key; remove it"),
        (chat(("user", "q")), "messages: list should have at least 2 items"),
        (chat(("assistant", "a"), ("user", "q")), "expected the last role to be 'assistant' (the answer), got 'user'"),
        (chat(("user", "q"), ("assistant", " ")), "the assistant's answer is empty"),
        (chat(("wizard", "q"), ("assistant", "a")), "messages.0.role: input should be 'system', 'user' or 'assistant'"),
        (b'{"text": "caf\xe9"}', "expected UTF-8, got byte 0xe9 at column 14; save the file as UTF-8"),
        (f'{{"text": "{"a" * MAX_LINE_BYTES}"}}', f"expected at most {MAX_LINE_BYTES} bytes a line, got"),
    ],
)
def test_each_bad_line_has_its_message(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataError) as problem:
        read_examples(path)
    text = str(problem.value)
    assert text.startswith(f"{path}:2: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 400


def test_repeated_id_names_both_lines(tmp_path: Path) -> None:
    row = '{"text": "a", "id": "x"}'
    with pytest.raises(DataError, match=r":3: id 'x' is that of line 1; give each row its own"):
        read_examples(write(tmp_path, row, GOOD, row))


def test_empty_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least one row, got an empty file"):
        read_examples(write(tmp_path))
    with pytest.raises(DataError, match="No such file"):
        read_examples(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="Is a directory"):
        data_ref(tmp_path)


def test_data_ref_is_digest_and_rows(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, GOOD, GOOD)
    ref = data_ref(path)
    assert (ref.sha256, ref.rows) == (hashlib.sha256(path.read_bytes()).hexdigest(), 3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["messages", "prompt", "completion", "text", "id", "answer"]) | st.text(max_size=3)


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=4) | JSON)
def test_any_json_is_an_example_or_a_one_line_error(found: object) -> None:
    try:
        example = parse_row(found, source="f:1", line=1)
    except DataError as problem:
        assert str(problem).isprintable()  # noqa: PT017  # most of the input is valid or not at random
    else:
        assert example.completion.strip()
        assert example.answer
