"""The manifest of shards, as a stranger may have written it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from promptembedder.batch import MANIFEST_LINES, ShardFolder, ShardRecord
from promptembedder.errors import DataError

RECORD = ShardRecord(
    shard=0,
    file="part-0.parquet",
    sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    rows=2,
    rejected=0,
    rejects=None,
    rejects_sha256=None,
    source="a.jsonl",
    source_sha256="cd",
    first_row=0,
    model_sha256="ab",
    instructions_sha256="ef",
    versions={"torch": "2"},
    tokens=9,
    padding=1,
    truncated=0,
)


def written(folder: Path, line: str) -> ShardFolder:
    (folder / MANIFEST_LINES).write_text(line + "\n", encoding="utf-8")
    return ShardFolder(folder)


def test_a_sound_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "part-0.parquet").write_bytes(b"abc")
    held = written(tmp_path, json.dumps(dataclasses.asdict(RECORD)))
    assert held.finished() == {0: RECORD}
    assert held.is_intact(RECORD)


@pytest.mark.parametrize(
    "change",
    [
        *({"shard": []}, {"shard": None}, {"shard": True}, {"rows": "2"}, {"rows": -1}, {"file": 3}, {"versions": 1}),
        *({"file": "../outside"}, {"file": "/etc/passwd"}, {"rejects": ".."}, {"file": ""}, {"file": "a\0b"}),
    ],
    ids=str,
)
def test_a_value_of_another_type_or_a_file_outside_the_folder_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Fuzzing: TypeError where it was used, and a hash of a file outside."""
    held = written(tmp_path, json.dumps(dataclasses.asdict(RECORD) | change))
    with pytest.raises(DataError, match="line 1: not a line of a manifest"):
        held.finished()


def test_a_line_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: not a line of a manifest"):
        written(tmp_path, "[" * 100_000).finished()


def test_a_link_out_of_the_folder_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"abc")
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "part-0.parquet").symlink_to(tmp_path / "outside")
    assert not ShardFolder(folder).is_intact(RECORD)
