"""Peak memory of a computation: of the process on a CPU, of torch's allocator on a GPU."""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from promptembedder import extras

__all__ = ["GIB", "OutOfMemoryError", "PeakMemory", "is_out_of_memory", "memory_in_use", "release_memory", "room_for"]

GIB = 1 << 30

_INTERVAL_S = 0.005


class OutOfMemoryError(Exception):
    """Error of a measured computation that exceeds the available or the permitted memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` reports missing memory. Third-party libraries use different exception types."""
    if isinstance(error, (MemoryError, OutOfMemoryError, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def memory_in_use(device: str) -> int:
    """Return the bytes in use: resident set of the process on a CPU, memory of tensors on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.memory_allocated(device))
    return int(extras.require("psutil", extra="bench").Process().memory_info().rss)


def release_memory(device: str) -> None:
    """Return unused memory to the system.

    Otherwise the next step could fill heap memory that was freed after loading a model, and the peak would not show it.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # exists in glibc but not in musl
        if trim is not None:
            trim(0)


def room_for(device: str) -> int:
    """Return the bytes that new processes may use together: nine tenths of the free memory."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(0.9 * free)
    return int(0.9 * extras.require("psutil", extra="bench").virtual_memory().available)


class PeakMemory:
    """Context that measures the peak memory in use. `bytes` contains the peak afterwards.

    On a GPU, the allocator records the peak. On a CPU, the kernel does (VmHWM, which a Linux process can reset).
    Without VmHWM, a thread samples the resident set every 5 ms. The thread also calls `on_excess` when the resident set
    exceeds `limit_bytes`. On a GPU, torch itself enforces the limit.
    """

    def __init__(
        self, device: str, *, limit_bytes: int | None = None, on_excess: Callable[[], None] | None = None
    ) -> None:
        """Prepare the measurement on `device`. If `limit_bytes` is None, `on_excess` is never called."""
        self.device, self.limit_bytes, self.on_excess = device, limit_bytes, on_excess
        self.on_gpu = torch.device(device).type == "cuda"
        self.bytes = 0
        self.source = "cuda allocator" if self.on_gpu else "sampled resident set"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self.bytes = memory_in_use(self.device)
        if _reset_high_water():
            self.source = "VmHWM"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            self.bytes = int(torch.cuda.max_memory_allocated(self.device))
            return
        self._done.set()
        self._thread.join()
        self._note(_high_water() if self.source == "VmHWM" else 0)

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            self._note(memory_in_use(self.device))

    def _note(self, in_use: int) -> None:
        self.bytes = max(self.bytes, in_use)
        if self.limit_bytes is not None and self.bytes > self.limit_bytes and self.on_excess is not None:
            self.on_excess()


def _reset_high_water() -> bool:
    """Reset the kernel's peak counter. Return False if the kernel has none or does not permit the reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water() > 0
    except OSError:
        return False


def _high_water() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
