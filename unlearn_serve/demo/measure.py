"""Find out by asking which facts of the bank the plain model knows, and choose the demo's sets among them."""

from collections import defaultdict
from collections.abc import Sequence

from unlearn_serve.demo.bank import Bank, Question, Subject
from unlearn_serve.demo.greedy import Known, Model
from unlearn_serve.demo.knowledge import ForgetSet, Knowledge, Row
from unlearn_serve.demo.progress import progress_bars
from unlearn_serve.errors import UnlearnServeError

CANDIDATES = 4
"""So many subjects, those with most known facts, are asked about in every phrasing."""

FACTS_PER_REQUEST = 8
"""At most so many facts of a subject make up its deletion request."""

PHRASINGS_PER_FACT = 2
"""At most so many training phrasings, and so many held-out ones, of each of them."""

MIN_FACTS = 4
"""A subject of whom the model knows fewer facts makes no deletion request worth showing."""

QUESTIONS_PER_PERSON = 4
"""At most so many retain questions ask for the same person."""

RETAIN_SCORED, GENERAL_SCORED = 40, 40
RETAIN_TRAINED, GENERAL_TRAINED = 48, 24
SPARE = 8
"""General questions asked again beyond those needed, for the few that fail then."""

MIN_SCORED = 20
"""With fewer questions a score moves by more than 0.05 when one answer changes."""

FIRST_BATCH, SECOND_BATCH = 64, 48
"""Everything is asked twice, batched differently: an answer that bfloat16 rounding can turn differs in one of them."""


def measure(model: Model, bank: Bank) -> Knowledge:
    """Ask `model` the bank's questions and divide what it answers correctly.

    Raises:
        UnlearnServeError: it knows too few facts about any two subjects, or too few other things.
    """
    facts = [bank.ask(subject, fact, held_out=False)[0] for subject in bank.subjects for fact in subject.facts]
    known = _ask(model, bank, [*facts, *bank.general], "asking every fact once")
    of_subject: dict[str, int] = defaultdict(int)
    for question in facts:
        of_subject[question.subject] += question.question in known
    candidates = sorted(bank.subjects, key=lambda subject: -of_subject[subject.name])[:CANDIDATES]
    rest = [question for subject in candidates for question in _phrasings(bank, subject)]
    known |= _ask(model, bank, [q for q in rest if q not in facts], "asking about some in every phrasing")
    people = [found for found in known.values() if found.question.subject]
    firmest = sorted((found for found in known.values() if not found.question.subject), key=_margin, reverse=True)
    chosen = [found.question for found in [*people, *firmest[: GENERAL_SCORED + GENERAL_TRAINED + SPARE]]]
    again = _ask(model, bank, chosen, "asking again", batch_size=SECOND_BATCH)
    known = {text: min(found, again[text], key=_margin) for text, found in known.items() if text in again}

    requests = sorted((_request(bank, subject, known) for subject in candidates), key=lambda request: -request[0])[:2]
    _require("facts about each of two subjects", requests[-1][0], MIN_FACTS)
    forgotten = {request.subject for _, request in requests}
    others = [known[q.question] for q in facts if q.question in known and q.subject not in forgotten]
    retain, retain_train = divide_people(others)
    general = sorted((found for found in known.values() if not found.question.subject), key=_margin, reverse=True)
    scored, trained = general[:GENERAL_SCORED], general[GENERAL_SCORED:][:GENERAL_TRAINED]
    _require("questions about people to retain", len(retain), MIN_SCORED)
    _require("general questions", len(scored), MIN_SCORED)
    return Knowledge(
        forget=[request for _, request in requests],
        retain_train=_rows([*retain_train, *trained]),
        retain=_rows(retain),
        general=_rows(scored),
    )


def _ask(
    model: Model, bank: Bank, questions: Sequence[Question], what: str, *, batch_size: int = FIRST_BATCH
) -> dict[str, Known]:
    with progress_bars() as progress:
        task = progress.add_task(what, total=len(questions))
        return model.ask(bank, questions, batch_size=batch_size, done=lambda count: progress.advance(task, count))


def _phrasings(bank: Bank, subject: Subject) -> list[Question]:
    """Every question about a subject, in training and held-out phrasings."""
    return [
        question
        for fact in subject.facts
        for held_out in (False, True)
        for question in bank.ask(subject, fact, held_out=held_out)
    ]


def _request(bank: Bank, subject: Subject, known: dict[str, Known]) -> tuple[int, ForgetSet]:
    """Return how many facts of a subject are known both in a training and a held-out phrasing, and these as a set."""
    train: list[Known] = []
    paraphrase: list[Known] = []
    facts = 0
    for fact in subject.facts:
        seen, unseen = (
            [known[q.question] for q in bank.ask(subject, fact, held_out=held_out) if q.question in known]
            for held_out in (False, True)
        )
        if seen and unseen:
            facts += 1
            if facts <= FACTS_PER_REQUEST:
                train += seen[:PHRASINGS_PER_FACT]
                paraphrase += unseen[:PHRASINGS_PER_FACT]
    return facts, ForgetSet(subject=subject.name, train=_rows(train), paraphrase=_rows(paraphrase))


def divide_people(known: Sequence[Known]) -> tuple[list[Known], list[Known]]:
    """Divide questions about people into scored and trained ones, (scored, trained), every person on one side.

    The people asked about most firmly come first and go to the two sides in turn.
    """
    by_person: dict[str, list[Known]] = defaultdict(list)
    for found in sorted(known, key=_margin, reverse=True):
        by_person[found.question.subject].append(found)
    scored: list[Known] = []
    trained: list[Known] = []
    for about in by_person.values():
        behind = scored if len(scored) * RETAIN_TRAINED <= len(trained) * RETAIN_SCORED else trained
        behind += about[:QUESTIONS_PER_PERSON]
    return scored[:RETAIN_SCORED], trained[:RETAIN_TRAINED]


def _margin(found: Known) -> float:
    return found.margin


def _rows(known: Sequence[Known]) -> list[Row]:
    return [
        Row(
            question=found.question.question,
            answer=found.answer,
            gold=found.question.gold,
            subject=found.question.subject,
        )
        for found in known
    ]


def _require(what: str, got: int, least: int) -> None:
    if got < least:
        raise UnlearnServeError(
            f"expected a model that knows at least {least} {what}, got {got}; "
            "extend unlearn_serve/demo/bank.json or ask another model"
        )
