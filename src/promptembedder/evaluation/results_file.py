"""What a results file records beside the scores, so that they can be told apart and made again."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["file_hashes", "machine", "versions", "write_results"]

_PACKAGES = ("promptembedder", "mteb", "sentence-transformers", "transformers", "torch")


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """The sha256 of each file, by its path."""
    hashes = {}
    for path in dict.fromkeys(paths):
        with path.open("rb") as file:
            hashes[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def versions() -> dict[str, str]:
    """Versions of the packages that scores depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def machine(device: str) -> dict[str, str | int | None]:
    """What the scores were computed on."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
            file.write("\n")
        Path(scratch).chmod(0o644)  # mkstemp makes it private
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)
