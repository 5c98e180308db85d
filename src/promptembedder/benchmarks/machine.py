"""What a measurement was made on and with: numbers mean nothing without it."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from promptembedder import extras

__all__ = ["fingerprint_of", "machine_facts", "versions"]

_PACKAGES = ("promptembedder", "torch", "transformers", "sentence-transformers", "peft", "accelerate", "numpy", "mteb")


def machine_facts() -> dict[str, str | int | None]:
    """The machine that this process runs on; stable from run to run.

    `cores` are those this process may use, `threads` those torch uses, `memory_bytes` is all the machine has, and
    `gpu` and `gpu_memory_bytes` are None without one.
    """
    psutil = extras.require("psutil", extra="bench")
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpu": None if gpu is None else str(gpu.name),
        "gpu_memory_bytes": None if gpu is None else int(gpu.total_memory),
    }


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the packages that measurements depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra, or an old distribution's name
            continue
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """Short digest of facts: equal exactly if they are."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


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
