"""A folder has one owner at a time, and a killed one is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promptembedder.errors import ConfigError, SaveError
from promptembedder.storage import check_writable, lock_directory

HOLD = """
import sys
from pathlib import Path
from promptembedder.storage import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.integration
def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "model"
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # an attempt that fails does not change who is named
            with (
                pytest.raises(ConfigError, match=f"is in use by process {holder.pid} on .*choose another output"),
                lock_directory(folder),
            ):
                pass
        with lock_directory(tmp_path / "runs" / "other"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with lock_directory(folder):
        pass
    with lock_directory(folder):  # let go of, it can be had again
        pass
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == []


def test_a_finished_job_leaves_no_lock_file_behind(tmp_path: Path) -> None:
    """`.NAME.lock` stayed next to every output, in folders that users list, sync and copy."""
    with lock_directory(tmp_path / "model"):
        assert (tmp_path / ".model.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    """Training into /proc/x was "in use by another process", and a file as parent folder ended in a traceback."""
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "model", tmp_path / "file" / "a" / "b"):
        with pytest.raises(SaveError, match=rf"cannot write .*{place.name} \(Not a directory\)"):
            check_writable(place)
        with pytest.raises(SaveError, match="Not a directory"), lock_directory(place):
            pass
    check_writable(tmp_path / "new" / "folder")
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder in which even root can write nothing")
def test_a_read_only_place_is_refused() -> None:
    for refuse in (check_writable, lambda path: lock_directory(path).__enter__()):
        with pytest.raises(
            SaveError, match=r"cannot write /proc/.*\)\. Free space on the disk, or choose another output"
        ):
            refuse(Path("/proc/x"))
