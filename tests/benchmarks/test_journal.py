"""Laws of the journal: what was added is there after a kill."""

from pathlib import Path

import pytest

from benchmarks.journal import Journal
from promptembedder.errors import DataError

FACTS = {"machine": {"cpu": "one"}, "versions": {"torch": "2"}}


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, **FACTS)
    journal.add({"a": 1, "b": None}, {"seconds": 0.5})
    again = Journal(path, **FACTS)
    assert len(again) == 1
    assert again.get({"b": None, "a": 1}) == {"seconds": 0.5}
    assert again.get({"a": 1}) is None


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, **FACTS)
    journal.add({"a": 1}, {"seconds": 1})
    journal.add({"a": 2}, {"seconds": 2})
    whole = path.read_bytes()
    first_line = len(whole.splitlines(keepends=True)[0])
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path, **FACTS)
        assert journal.get({"a": 2}) is None
        assert (journal.get({"a": 1}) is None) == (cut < whole.rindex(b'{"key'))
        if cut in (0, first_line - 3, first_line, len(whole) - 5):
            journal.add({"a": 3}, {"seconds": 3})
            assert Journal(path, **FACTS).get({"a": 3}) == {"seconds": 3}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, **FACTS).add({"a": 1}, {"seconds": 1})
    for damage in ("{\n", "[]\n", "{}\n"):
        path.write_text(path.read_text().splitlines(keepends=True)[0] + damage)
        with pytest.raises(DataError, match="damaged in line 2"):
            Journal(path, **FACTS)


def test_facts_that_differ_are_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, **FACTS)
    with pytest.raises(DataError, match=r"another machine \(cpu, gpu differ\)"):
        Journal(path, machine={"cpu": "two", "gpu": "x"}, versions=FACTS["versions"])
    with pytest.raises(DataError, match=r"another version \(torch differ\)"):
        Journal(path, machine=FACTS["machine"], versions={})
