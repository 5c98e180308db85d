"""Results files."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from promptembedder.evaluation import file_hashes, machine, versions, write_results


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_results(path, {"ä": [1.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1.5, None]}
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, {"not JSON": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1.5, None]}
    assert os.listdir(tmp_path) == ["out.json"]


def test_each_file_is_hashed_once(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    assert file_hashes([path, path]) == {str(path): hashlib.sha256(b"abc").hexdigest()}


def test_versions_and_machine_are_named() -> None:
    assert {"python", "promptembedder", "mteb", "sentence-transformers", "transformers", "torch"} == set(versions())
    assert machine("cpu")["device"] == "cpu"
    assert machine("cpu")["torch_threads"] == 1
