"""Laws of folders that appear whole or not at all."""

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from promptembedder.errors import SaveError
from promptembedder.storage import MANIFEST_NAME, Manifest, atomic_directory, write_manifest


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_files_of_a_block_that_ends_well_are_in_the_folder(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "deep" / "model") as scratch:
        (scratch / "a").write_text("1")
        (scratch / "sub").mkdir()
        (scratch / "sub" / "b").write_text("2")
    assert contents(tmp_path) == {"deep/model/a": "1", "deep/model/sub/b": "2"}


def test_nothing_is_seen_under_the_final_name_before_the_block_ends(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as scratch:
        (scratch / "a").write_text("1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "a").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_directory(tmp_path / "model") as scratch:
        (scratch / "a").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_changes_no_file_that_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target) as scratch:
        (scratch / "a").write_text("new")
        raise RuntimeError
    assert contents(tmp_path) == {"model/a": "old"}


def test_files_of_the_same_name_are_replaced_and_others_survive(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (target / "sub").mkdir(parents=True)
    (target / "logs").mkdir()
    for name in ("a", "other", "sub/old", "logs/x"):
        (target / name).write_text("old")
    with atomic_directory(target) as scratch:
        (scratch / "a").write_text("new")
        (scratch / "sub").mkdir()
        (scratch / "sub" / "b").write_text("new")
    assert contents(tmp_path) == {"model/a": "new", "model/other": "old", "model/sub/b": "new", "model/logs/x": "old"}


def test_the_manifest_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off before it, the hashes of the old manifest show that the folder is incomplete."""
    target, moved = tmp_path / "model", []
    target.mkdir()
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: moved.append(self.name) or replace(self, to))
    with atomic_directory(target) as scratch:
        for name in ("z", MANIFEST_NAME, "a"):
            (scratch / name).write_text("1")
    assert moved[-1] == MANIFEST_NAME
    assert sorted(moved[:-1]) == ["a", "z"]


def test_others_may_read_the_folder(tmp_path: Path) -> None:
    """A scratch folder is private to its maker; a saved model is not."""
    with atomic_directory(tmp_path / "model") as scratch:
        (scratch / "a").write_text("1")
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755


def test_a_model_is_replaced_in_one_step_with_what_lies_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_directory(target) as scratch:
            (scratch / "a").write_text(content)
            write_manifest(scratch, Manifest(config={}, backbones={}, files={"a": ""}))
        (target / "logs").mkdir(exist_ok=True)
        (target / "logs" / "log").write_text("mine")
    assert contents(target).keys() == {"a", MANIFEST_NAME, "logs/log"}
    assert (target / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told_in_one_line_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    with (
        pytest.raises(SaveError, match=r"cannot save .*model \(No space left on device\)"),
        atomic_directory(tmp_path / "model"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert contents(tmp_path) == {"model/a": "old"}


def test_scratch_folders_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = [f".model-{host}-{dead.pid}-x", f".model-{host}-{os.getppid()}-x", f".model-elsewhere-{dead.pid}-x"]
    for name in names:
        (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "model"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"model", *names[1:]}
