"""docs/format.md and the tests name the same rules, and the public names are those that are promised."""

import re
from pathlib import Path

import unlearn_serve.format

TESTS = Path(__file__).parents[1]
SPEC = TESTS.parent / "docs" / "format.md"


def test_every_rule_has_a_test_that_names_it() -> None:
    rules = set(re.findall(r"^- \*\*([JMABRCSL]\d+)\*\*", SPEC.read_text("utf-8"), re.MULTILINE))
    assert len(rules) > 50
    files = [
        *TESTS.glob("format/test_*.py"),
        *TESTS.glob("store/test_*.py"),
        TESTS / "serving" / "test_starting_point.py",
    ]
    named = {rule for file in files for rule in re.findall(r"\b[JMABRCSL]\d+\b", file.read_text("utf-8"))}
    assert named == rules, (sorted(rules - named), sorted(named - rules))


def test_public_names() -> None:
    for name in unlearn_serve.format.__all__:
        assert hasattr(unlearn_serve.format, name), name
