"""The rows of the experiments: who goes and who stays, and what is said where the data are missing."""

from pathlib import Path

import pytest

from benchmarks.paper.data.folder import require_files
from benchmarks.paper.data.imdb import LABELS, RowsSize, read_imdb, running_text
from benchmarks.paper.data.made_up import write_made_up
from benchmarks.paper.data.samsum import read_samsum
from benchmarks.paper.data.tofu import FILES, TofuSize, read_tofu
from unlearn_serve.errors import DataError

TOFU = TofuSize(requests=3, guards=2, questions=4, holdout=6, general=3)
ROWS = RowsSize(train=20, test=4, retained=4, words=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up(tmp_path_factory.mktemp("made-up"))


def test_requests_part_the_training_rows(folder: Path) -> None:
    data = read_tofu(folder, TOFU)
    assert len(data.train) == len(set(data.train)) == (3 + 2) * 4
    for count in (1, 2, 3):
        forget, retain = data.forget(count), data.retain(count)
        assert len(forget) == 4 * count
        assert {*forget, *retain} == set(data.train)
        assert set(forget).isdisjoint(retain)
        assert set(data.guards) <= set(retain)


def test_rephrased_rows_ask_for_the_same_answers(folder: Path) -> None:
    data = read_tofu(folder, TOFU)
    for rows, rephrased in zip(data.requested, data.rephrased, strict=True):
        assert [row.completion for row in rows] == [row.completion for row in rephrased]
        assert all(one.prompt != other.prompt for one, other in zip(rows, rephrased, strict=True))


def test_the_holdout_has_as_many_authors_as_it_can(folder: Path) -> None:
    """Taken from the top, sixty rows would be three authors, and the level to stop at theirs alone."""
    authors = {str(row.prompt).partition(" of ")[2] for row in read_tofu(folder, TOFU).holdout}
    assert len(authors) == 4  # all that were made up


def test_exactly_the_first_rows_are_mislabelled(folder: Path) -> None:
    right, wrong = read_imdb(folder, ROWS), read_imdb(folder, ROWS, mislabelled=0.1)
    flipped = [one.completion != other.completion for one, other in zip(right.train, wrong.train, strict=True)]
    assert flipped == [True] * 2 + [False] * 18
    assert wrong.forget(0.1) == wrong.train[:2]
    assert right.test == wrong.test
    assert {row.completion for row in right.forget(0.1)} == set(LABELS)


def test_running_text_is_the_review_alone(folder: Path) -> None:
    (text,) = running_text(read_imdb(folder, ROWS).train[:1])
    assert text.prompt is None
    assert text.completion.startswith("Film 0 tells of")
    assert "Sentiment" not in text.completion


def test_dialogues_of_the_most_frequent_speaker_come_first(folder: Path) -> None:
    rows = read_samsum(folder, ROWS).train
    speakers = [{line.partition(":")[0] for line in str(row.prompt).splitlines()[1:-1]} for row in rows]
    count = {name: sum(name in some for some in speakers) for some in speakers for name in some}
    most = max(count.values())
    first = min(name for name, times in count.items() if times == most)
    assert all(first in some for some in speakers[:most])


def test_missing_data_are_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tofu/full\.jsonl.*never downloaded.*locuslab/TOFU.*PAPER_DATA.*--quick"):
        require_files(tmp_path, FILES)
