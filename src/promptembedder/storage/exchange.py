"""Two things of the operating system: folders that change places in one step, and files that are on the disk."""

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["exchange", "sync_tree"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(left: Path, right: Path) -> bool:
    """Let two folders of one disk change places in one step; False where system or file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.5
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0)


def sync_tree(folder: Path, *, below: bool = True) -> None:
    """Wait until a folder is on the disk, so that losing power loses nothing of it.

    Args:
        below: With all files and folders in it; False: its own entries alone.

    Raises:
        OSError: The disk cannot take it.
    """
    if below:
        for place, _, files in os.walk(folder):
            for name in files:
                _sync(Path(place) / name)
            _sync(Path(place))
    else:
        _sync(folder)


def _sync(path: Path) -> None:
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
