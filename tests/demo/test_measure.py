import json
from pathlib import Path

import pytest

from unlearn_serve.demo.bank import Bank, Question
from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.demo.greedy import Known, Model
from unlearn_serve.demo.knowledge import ForgetSet, Knowledge, Row
from unlearn_serve.demo.measure import QUESTIONS_PER_PERSON, divide_people, measure
from unlearn_serve.errors import UnlearnServeError

SMALL_BANK = Bank.model_validate(
    {
        "system": "Answer with one short sentence.",
        "phrasings": {"wrote": {"train": ["Who wrote {it}?"], "held_out": ["Name the author of {it}."]}},
        "subjects": [{"name": "Nobody", "gold": "Zyxwvut", "facts": [{"ask": "wrote", "it": "the play Hamlet"}]}],
        "general": [
            {"question": "What is the capital of France?", "gold": "Paris"},
            {"question": "What is the capital of Spain?", "gold": "Zyxwvut"},
        ],
    }
)


def known(subject: str, index: int, margin: float) -> Known:
    question = Question(question=f"Question {index}?", gold=subject, subject=subject)
    return Known(question=question, answer=f"{subject}.", margin=margin)


def test_every_person_is_on_one_side_and_the_firmest_come_first() -> None:
    people = [known(f"person {index % 30}", index, margin=index / 10) for index in range(90)]
    scored, trained = divide_people(people)
    assert scored
    assert trained
    assert {k.question.subject for k in scored}.isdisjoint(k.question.subject for k in trained)
    assert scored[0].margin == max(k.margin for k in people)


def test_no_person_takes_more_than_their_share_of_the_questions() -> None:
    scored, trained = divide_people([known("one", index, margin=1.0) for index in range(20)])
    assert len(scored) == QUESTIONS_PER_PERSON
    assert trained == []


@pytest.mark.model
def test_only_what_the_model_answers_is_known() -> None:
    model = Model(ensure_checkpoint())
    answered: list[int] = []
    found = model.ask(SMALL_BANK, SMALL_BANK.general, batch_size=1, done=answered.append)
    assert list(found) == ["What is the capital of France?"]
    (only,) = found.values()
    assert only.answer.endswith("Paris.")
    assert only.margin > 0
    assert answered == [1, 1]


@pytest.mark.model
def test_a_model_that_knows_too_little_is_refused_with_what_is_missing() -> None:
    with pytest.raises(UnlearnServeError, match=r"at least 4 facts about .*, got 0; extend .*bank.json"):
        measure(Model(ensure_checkpoint()), SMALL_BANK)


def test_the_sets_are_written_in_the_trainer_s_chat_form(tmp_path: Path) -> None:
    row = Row(
        question="Who wrote Hamlet?", answer="Hamlet by William Shakespeare.", gold="Shakespeare", subject="W. S."
    )
    knowledge = Knowledge(
        forget=[ForgetSet(subject="W. S.", train=[row], paraphrase=[row])], retain_train=[], retain=[row], general=[row]
    )
    paths = knowledge.write(tmp_path)
    assert sorted(paths) == ["forget1", "forget1_paraphrase", "general", "retain", "retain_train"]
    content = json.loads(paths["forget1"].read_text(encoding="utf-8"))
    assert [message["role"] for message in content["messages"]] == ["system", "user", "assistant"]
    assert content["messages"][-1]["content"] == row.answer
    assert content["answer"] == "Shakespeare"
