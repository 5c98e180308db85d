"""A results file is whole or as it was before."""

import csv
import json
from pathlib import Path

import pytest

from promptembedder.errors import SaveError
from promptembedder.storage import write_csv, write_json, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["results.json"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.md", "grüße\n")
    assert (tmp_path / "a" / "b" / "c.md").read_bytes() == "grüße\n".encode()


def test_csv_reads_back_with_nothing_where_nothing_is_known(tmp_path: Path) -> None:
    rows = [{"name": 'a "quoted", name', "seconds": 0.1, "extra": [1]}, {"name": "b\nc", "seconds": None}, {}]
    write_csv(tmp_path / "rows.csv", rows, ["name", "seconds"])
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert found == [
        {"name": 'a "quoted", name', "seconds": "0.1"},
        {"name": "b\nc", "seconds": ""},
        {"name": "", "seconds": ""},
    ]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match=r"cannot write .*results\.json \(.*\)\. Free space on the disk"):
        write_json(tmp_path / "file" / "results.json", {})
