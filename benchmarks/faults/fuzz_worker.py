"""Process that reads hostile inputs, so that crashes, hangs and excessive memory stay isolated.

python -m benchmarks.faults.fuzz_worker READER FOLDER SEED FIRST END
"""

import contextlib
import faulthandler
import importlib
import inspect
import json
import logging
import os
import struct
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

from benchmarks.faults.fuzz_inputs import fuzz_input
from benchmarks.faults.fuzz_reader import FuzzedReader, OutsideWatch

__all__ = ["AT_NAME", "READERS", "made_reader", "main"]

AT_NAME = "at"
_LIMIT_S = 20.0  # time limit of one input in wall-clock time, generous because the machine may be busy
_MOST_BYTES = 3 << 30  # memory limit on top of the memory in use when reading begins
_TELL_EVERY_S = 1.0

# module and function by name, so that a worker imports only what its own reader needs
READERS = {
    "recipe": ("settings", "recipe"),
    "mixture": ("settings", "mixture"),
    "tasks": ("settings", "tasks"),
    "view": ("settings", "view"),
    "jsonl": ("data", "json_rows"),
    "csv": ("data", "csv_rows"),
    "text": ("data", "plain_rows"),
    "gzip": ("data", "gzip_rows"),
    "parquet": ("data", "parquet_rows"),
    "embeddings": ("data", "embeddings"),
    "safetensors": ("models", "tensors"),
    "manifest": ("models", "manifest"),
    "opening": ("models", "opening"),
    "self_test": ("models", "self_test"),
    "training_state": ("models", "state"),
    "checkpoint": ("models", "checkpoint"),
    "shards": ("models", "shards"),
    "gguf_header": ("models", "gguf_header"),
    "gguf": ("models", "gguf"),
    "server": ("server", "bodies"),
}


def made_reader(name: str, folder: Path, resources: ExitStack) -> FuzzedReader:
    """Build the reader of this name with its files in `folder`. Processes that it starts end with `resources`."""
    module, function = READERS[name]
    make = getattr(importlib.import_module(f"benchmarks.faults.fuzz_{module}"), function)
    needs = inspect.signature(make).parameters
    made: FuzzedReader = make(folder, resources) if "resources" in needs else make(folder)
    return made


def main(name: str, folder: Path, *, seed: int, first: int, end: int) -> None:
    """Read inputs `first` to `end`. Print the outcomes as JSON lines, and write the current index to a file."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with ExitStack() as resources:
        reader = made_reader(name, folder, resources)
        watch = OutsideWatch(folder)
        _limit_memory()
        at = resources.enter_context((folder.parent / AT_NAME).open("r+b", buffering=0))
        read, last_report = 0, time.monotonic()
        for index in range(first, end):
            os.pwrite(at.fileno(), struct.pack("<Q", index), 0)
            data = fuzz_input(reader.mutate, reader.seeds, seed=seed, index=index)
            faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
            fault = reader.outcome(data, watch)
            faulthandler.cancel_dump_traceback_later()
            read += fault is None
            if fault:
                _tell(wrong=fault, index=index)
            if time.monotonic() - last_report > _TELL_EVERY_S:
                last_report = time.monotonic()
                _tell(at=index + 1, read=read)
        _tell(at=end, read=read, done=True)


def _tell(**words: object) -> None:
    sys.__stdout__.write(json.dumps(words) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # only Linux supports all of these calls
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    _, given, place, *numbers = sys.argv
    main(given, Path(place), seed=int(numbers[0]), first=int(numbers[1]), end=int(numbers[2]))
