"""What results and models were made with and on: numbers mean nothing without it."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["file_sha256", "machine_facts", "versions"]

_PACKAGES = ("promptembedder", "torch", "transformers", "sentence-transformers", "peft", "accelerate", "numpy", "mteb")


def machine_facts() -> dict[str, str | int | None]:
    """The machine that this process runs on; stable from run to run.

    `cores` are those this process may use, `threads` those torch uses, `memory_bytes` is all the machine has (None
    where the system does not tell), and `gpu` and `gpu_memory_bytes` are None without one.
    """
    import torch  # half a second: `--help` and `info` do without

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
    """Versions of Python, CUDA and the packages that results depend on, as far as they are installed."""
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
    """The sha256 of a file's content, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, other systems not these names
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux; taskset and containers give a process less than there is
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
