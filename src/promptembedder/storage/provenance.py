"""Versions, machine facts and result files."""

import csv
import hashlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from promptembedder.errors import SaveError

__all__ = ["describe_machine", "file_sha256", "versions", "write_csv", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 atomically, sync it to disk, and create missing parent folders.

    Raises:
        SaveError: If the file cannot be written. Its previous content is unchanged.
    """
    scratch: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).chmod(0o644)  # mkstemp makes it private
        Path(scratch).replace(path)
    except OSError as error:
        raise SaveError(
            f"cannot write {path} ({error.strerror or error}). Free space on the disk, or choose another file."
        ) from error
    finally:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON in the order of its keys. Raise ValueError for NaN and infinities."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write columns of the rows as CSV with a header. None and missing values become empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


_PACKAGES = ("promptembedder", "torch", "transformers", "sentence-transformers", "peft", "accelerate", "numpy", "mteb")


def describe_machine() -> dict[str, str | int | None]:
    """Describe the machine that this process runs on. The values are stable from run to run.

    `cores` is the number of CPU cores available to this process, `threads` the number of torch threads, `memory_bytes`
    the total memory of the machine (None where the system does not report it). `gpu` and `gpu_memory_bytes` are None
    without a GPU.
    """
    import torch  # takes half a second, and `--help` and `info` do not need it

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "gpu": None if gpu is None else str(gpu.name),
        "gpu_memory_bytes": None if gpu is None else int(gpu.total_memory),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, CUDA and the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra, or an old distribution's name
            continue
    import torch

    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, other systems lack these names
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: taskset and containers may restrict a process
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
