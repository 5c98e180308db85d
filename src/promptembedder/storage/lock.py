"""One process at a time in a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from promptembedder.errors import ConfigError

__all__ = ["owned_folder"]


@contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """While this lasts, no other process gets `folder`; the lock lies beside it and ends with the process.

    Raises:
        ConfigError: Another process has it; the message names it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.resolve().name}.lock"
    owner = beside.with_suffix(".owner")
    lock = FileLock(beside, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{folder} is in use by {_read(owner)}. Wait for it, stop it, or choose another output."
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _read(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
