"""SECURITY.md names a test for each statement; a statement whose test is gone is no longer shown."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[test for _, test in NAMED])
def test_named_test_exists(file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_line_of_the_threat_model_names_a_test() -> None:
    table = re.findall(r"^\|.*\|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)[2:]
    assert len(table) > 10
    assert [line for line in table if "::test_" not in line] == []
