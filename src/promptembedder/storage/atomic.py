"""Atomic directories: check, lock, write to a scratch directory, swap."""

import ctypes
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from promptembedder.errors import ConfigError, SaveError
from promptembedder.storage.manifest import MANIFEST_NAME, list_named_files

__all__ = ["atomic_directory", "atomic_swap", "check_writable", "lock_directory", "sync_tree"]


def check_writable(path: Path) -> None:
    """Check that `path` can be written, a file or a folder that need not exist, before expensive work.

    Nothing is created, not even missing parent folders.

    Raises:
        SaveError: If the path is on a read-only or full disk, in a folder without write permission, or below a file.
    """
    folder = path if os.path.isdir(path) else path.absolute().parent  # Path.is_dir raises without permission
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise SaveError(
            f"cannot write {path} ({error.strerror or error}). Free space on the disk, or choose another output."
        ) from error


@contextmanager
def lock_directory(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes for the duration of the block.

    The lock file is next to the folder and is deleted at the end. The lock ends with the process.

    Raises:
        ConfigError: If another process has locked the folder. The message names that process.
        SaveError: If the lock file cannot be written.
    """
    lock_path = folder.parent / f".{folder.resolve().name}.lock"
    check_writable(lock_path)  # FileLock takes some errors for another owner
    folder.parent.mkdir(parents=True, exist_ok=True)
    owner = lock_path.with_suffix(".owner")
    lock = FileLock(lock_path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{folder} is in use by {_read_owner(owner)}. Wait for it, stop it, or choose another output."
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        with suppress(OSError):  # Windows deletes no open file
            lock_path.unlink()  # before the release: filelock refuses a lock on a deleted file to another process
        lock.release()


def _read_owner(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def atomic_swap(left: Path, right: Path) -> bool:
    """Swap two folders of one file system atomically. Return False if the system or file system does not support it."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.5
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0)


def sync_tree(folder: Path, *, below: bool = True) -> None:
    """Sync a folder to disk, so that it survives a power cut.

    Args:
        below: Sync all files and folders in it, too. If False, only the folder's entries.

    Raises:
        OSError: If the disk is full or fails.
    """
    if below:
        for root, _, files in os.walk(folder):
            for name in files:
                _sync(Path(root) / name)
            _sync(Path(root))
    else:
        _sync(folder)


def _sync(path: Path) -> None:
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a scratch folder whose files move to `target` when the block succeeds. If it fails, nothing changes.

    If `target` does not exist, it appears atomically. If it contains a saved model, old and new model are swapped
    atomically where the system supports it (Linux does), and the files of the old model are deleted. Other files (logs,
    checkpoints) are kept.

    Raises:
        SaveError: If a file cannot be written. The previous content is unchanged.
    """
    if target.is_symlink():
        target = target.resolve()  # replace the folder that the link points to, not the link
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_strays(target)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=_scratch_prefix(target, os.getpid())))
        yield scratch
        scratch.chmod(0o755)  # mkdtemp makes it private
        sync_tree(scratch)
        _move_into_place(scratch, target)
        sync_tree(target.parent, below=False)
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"cannot save {target} ({error.strerror or error}). The previous content is unchanged. Free space on the "
            "disk, or choose another folder."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)  # after a swap, this is the old content


def _move_into_place(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    new_files = list(scratch.iterdir())
    if (target / MANIFEST_NAME).is_file() and _swap_with_extras(scratch, target):
        return
    # the manifest last: until it is there, the folder is not a model or its hashes show that it is incomplete
    for path in sorted(new_files, key=lambda path: path.name == MANIFEST_NAME):
        if path.is_dir():
            shutil.rmtree(target / path.name, ignore_errors=True)
        path.replace(target / path.name)
    sync_tree(target, below=False)


def _swap_with_extras(scratch: Path, target: Path) -> bool:
    """Swap both folders after linking the files that are not part of the old model into the new folder.

    Return False, and undo the links, if the swap is not possible.
    """
    if Path.cwd().is_relative_to(target.resolve()):  # the process must keep its working directory
        return False
    model_files = {MANIFEST_NAME, *list_named_files(target)}
    others = [path for path in target.iterdir() if path.name not in model_files and not (scratch / path.name).exists()]
    linked: list[Path] = []
    try:
        for path in others:
            linked.append(scratch / path.name)
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, linked[-1], symlinks=True, copy_function=os.link)
            else:
                os.link(path, linked[-1], follow_symlinks=False)
        done = atomic_swap(scratch, target)
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
    """Remove scratch folders of `target` that killed processes of this machine left."""
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
    except (OSError, OverflowError):  # process of another user
        return True
    return True
