import pytest
from pydantic import ValidationError

from unlearn_serve.demo.bank import Bank, Question, load_bank


def test_the_bank_is_large_enough_to_choose_from() -> None:
    bank = load_bank()
    assert sum(len(subject.facts) >= 4 for subject in bank.subjects) >= 12
    assert sum(len(subject.facts) for subject in bank.subjects) >= 200
    assert len(bank.general) >= 100


def test_training_and_held_out_phrasings_of_a_fact_share_no_question() -> None:
    bank = load_bank()
    for subject in bank.subjects:
        for fact in subject.facts:
            train = {question.question for question in bank.ask(subject, fact, held_out=False)}
            assert train.isdisjoint(question.question for question in bank.ask(subject, fact, held_out=True))


def test_a_question_that_gives_its_answer_away_is_refused() -> None:
    with pytest.raises(ValidationError, match="does not hold its answer 'Einstein'"):
        Question(question="Who was einstein?", gold="Einstein")


def test_an_unknown_kind_of_question_is_refused_and_named() -> None:
    content = load_bank().model_dump()
    content["subjects"][0]["facts"][0]["ask"] = "sang"
    with pytest.raises(ValidationError, match=r"William Shakespeare: expected one of .* got 'sang'"):
        Bank.model_validate(content)


def test_a_repeated_question_is_refused_and_named() -> None:
    content = load_bank().model_dump()
    content["general"].append(content["general"][0])
    with pytest.raises(ValidationError, match="expected each question once"):
        Bank.model_validate(content)


@pytest.mark.parametrize(("answer", "right"), [("It was ALBERT EINSTEIN.", True), ("Ein Stein.", False)])
def test_case_does_not_matter_in_an_answer(answer: str, right: bool) -> None:
    assert Question(question="Who developed relativity?", gold="Einstein").answered_by(answer) is right
