"""How much memory a piece of work takes at its peak: of the process on a CPU, of torch's allocator on a GPU."""

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
    """A measured piece of work needs more memory than there is, or than it may have."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` tells of missing memory; foreign libraries have several names for it."""
    if isinstance(error, (MemoryError, OutOfMemoryError, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def memory_in_use(device: str) -> int:
    """Bytes in use now: the process's resident set on a CPU, what tensors hold on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.memory_allocated(device))
    return int(extras.require("psutil", extra="bench").Process().memory_info().rss)


def release_memory(device: str) -> None:
    """Give back what is not in use.

    Else free heap left from loading a model would be filled by the next step unseen.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl has none
        if trim is not None:
            trim(0)


def room_for(device: str) -> int:
    """Bytes that processes started now may take together: nine tenths of what nobody uses."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(0.9 * free)
    return int(0.9 * extras.require("psutil", extra="bench").virtual_memory().available)


class PeakMemory:
    """Within `with`: the highest memory in use; `bytes` holds it afterwards.

    On a GPU the allocator keeps count. On a CPU the kernel does (VmHWM, which Linux lets a process reset); where it
    does not, a thread looks at the resident set every 5 ms. The thread also calls `on_excess` once the resident set
    is larger than `limit_bytes`; on a GPU torch itself refuses.
    """

    def __init__(
        self, device: str, *, limit_bytes: int | None = None, on_excess: Callable[[], None] | None = None
    ) -> None:
        """Measure on `device`; without a limit nothing is ever in excess."""
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
    """Start the kernel's count anew; False where it keeps none or does not let us."""
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
