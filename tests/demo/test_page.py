import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from demo.recording import RELEASE_1, SWAPS, answer, phase, streamed

from unlearn_serve.demo import checks
from unlearn_serve.demo.page import write_page
from unlearn_serve.demo.report import Report, Step, side_by_side
from unlearn_serve.pages import mark

LEVELS = {"forget": 1.0, "forget_paraphrase": 0.9, "retain": 1.0, "general": 1.0}


class Structure(HTMLParser):
    """Collects what a page loads, and checks that its elements nest."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.drawings = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.drawings += tag == "svg"
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def report() -> Report:
    first = phase("first live", RELEASE_1, LEVELS | {"forget": 0.0}, answer("I", " do", " not", " know", "."))
    before = phase("before", "plain", LEVELS, answer("<b>William</b>", " Shakespeare", "."))
    return Report(
        model="a model",
        versions={"torch": "2"},
        cpus=2,
        started=90.0,
        seconds=150.0,
        deletion_requests={"case-17": "William Shakespeare"},
        server_pids_before=[1, 2],
        server_pids_after=[1, 2],
        requests_total=3,
        requests_failed=0,
        steps=[Step(name="training the adapter of case-17", started=95.0, seconds=3.0)],
        swaps=list(SWAPS),
        phases={one.name: one.scores for one in (before, first)},
        phase_releases={one.name: one.release for one in (before, first)},
        rollback=checks.compare_answers(first, first),
        comparisons=side_by_side([before, first]),
        checks=[checks.same_processes([1, 2], [1, 2])],
    )


def test_the_page_holds_all_it_shows(report: Report, tmp_path: Path) -> None:
    requests = [streamed(99.5, begun=0, ended=1), streamed(199.5, begun=1, ended=2)]
    text = write_page(tmp_path, report, requests).read_text(encoding="utf-8")
    page = Structure()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)", text)
    # Scores, the whole run, and one timeline a swap.
    assert page.drawings == 2 + len(SWAPS)


def test_answers_are_escaped_and_the_gold_string_is_marked(report: Report, tmp_path: Path) -> None:
    text = write_page(tmp_path, report, []).read_text(encoding="utf-8")
    assert "&lt;b&gt;William&lt;/b&gt; <mark>Shakespeare</mark>." in text
    assert "I do not know." in text


def test_the_same_run_renders_to_the_same_bytes(report: Report, tmp_path: Path) -> None:
    requests = [streamed(99.5, begun=0, ended=1)]
    assert write_page(tmp_path, report, requests).read_bytes() == write_page(tmp_path, report, requests).read_bytes()


def test_report_json_carries_what_the_issue_names(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path, [streamed(99.5, begun=0, ended=1)])
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content.keys() >= {"server_pids_before", "server_pids_after", "requests_total", "requests_failed"}
    for swap in content["swaps"]:
        assert swap.keys() >= {"release", "generation", "deletion_ids", "stage_ms", "stall_ms", "publish_to_live_ms"}
    for scores in content["phases"].values():
        for kind in LEVELS:
            assert scores[kind].keys() >= {"accuracy", "probability"}
    assert len((tmp_path / "requests.jsonl").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "gold", "marked"),
    [
        ("by SHAKESPEARE & co", "Shakespeare", "by <mark>SHAKESPEARE</mark> &amp; co"),
        ("<i>", "Shakespeare", "&lt;i&gt;"),
    ],
)
def test_mark(text: str, gold: str, marked: str) -> None:
    assert mark(text, gold) == marked
