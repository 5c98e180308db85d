"""A folder has one owner at a time, and a killed one is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promptembedder.errors import ConfigError
from promptembedder.storage import lock_directory

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
