"""Atomic directories: lock, write to a scratch directory, swap."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from filelock import FileLock, Timeout
from promptembedder.errors import ConfigError
import ctypes
import sys
import shutil
import tempfile
from promptembedder.errors import SaveError
from promptembedder.storage.manifest import MANIFEST_NAME, named_files

__all__ = ['exchange', 'owned_folder', 'sync_tree', 'whole_folder']

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


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A scratch folder whose files are in `target`, on the disk, when the block ends well; else nothing changes.

    Where `target` does not exist yet, it appears in one step. Where it holds a saved model, that one is there, whole,
    until the new one is: both change places in one step, as far as the system can do that (Linux can), and the files
    of the old model go. Other files (logs, checkpoints) stay.

    Raises:
        SaveError: The block or this cannot write; what was there before is as it was.
    """
    if target.is_symlink():
        target = target.resolve()  # the link stays, and what it leads to changes
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_strays(target)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=_scratch_prefix(target, os.getpid())))
        yield scratch
        scratch.chmod(0o755)  # mkdtemp makes it private
        sync_tree(scratch)
        _put_in_place(scratch, target)
        sync_tree(target.parent, below=False)
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"cannot save {target} ({error.strerror or error}). What was there before is as it was. Free space on the "
            "disk, or name another folder."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)  # after an exchange, that is the old content


def _put_in_place(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    made = list(scratch.iterdir())
    if (target / MANIFEST_NAME).is_file() and _exchanged(scratch, target):
        return
    # the manifest last: without one there was no model before it; with one, the hashes tell that the folder is torn
    for path in sorted(made, key=lambda path: path.name == MANIFEST_NAME):
        if path.is_dir():
            shutil.rmtree(target / path.name, ignore_errors=True)
        path.replace(target / path.name)
    sync_tree(target, below=False)


def _exchanged(scratch: Path, target: Path) -> bool:
    """Whether both have changed places, what is not of the old model's linked into the new one."""
    if Path.cwd().is_relative_to(target.resolve()):  # a process must not lose the folder it stands in
        return False
    own = {MANIFEST_NAME, *named_files(target)}
    others = [path for path in target.iterdir() if path.name not in own and not (scratch / path.name).exists()]
    linked: list[Path] = []
    try:
        for path in others:
            linked.append(scratch / path.name)
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, linked[-1], symlinks=True, copy_function=os.link)
            else:
                os.link(path, linked[-1], follow_symlinks=False)
        done = exchange(scratch, target)
    except (OSError, shutil.Error):  # a file system without links, a mount
        done = False
    if not done:
        for path in linked:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return done


def _scratch_prefix(target: Path, process: int) -> str:
    return f".{target.name}-{socket.gethostname()}-{process}-"


def _clear_strays(target: Path) -> None:
    """Remove scratch folders of `target` whose process on this machine is gone: killed while it saved."""
    begin = f".{target.name}-{socket.gethostname()}-"
    for path in target.parent.glob(f"{begin.replace('[', '[[]')}*"):
        process = path.name.removeprefix(begin).partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
