"""Fuzzing of all readers: a hostile input must give a valid object or a library error, within time and memory limits.

Input `index` of a seed is deterministic, so reader, seed and index reproduce a failure.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from benchmarks.faults.fuzz_worker import AT_NAME, READERS
from benchmarks.faults.result import Campaign

__all__ = ["FUZZED", "SHARES", "fuzz"]

_MOST_DEATHS = 25  # the fuzzing of a reader stops after this many crashes and hangs
_TMPFS = Path("/dev/shm")
# fraction of the requested inputs for readers that build a whole model for each input
SHARES = {"opening": 0.01, "gguf": 0.01}


@dataclass
class _Seen:
    """Results so far, with the count and the first input index of each kind of failure."""

    tried: int = 0
    read: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, index: int) -> None:
        """Record a failure."""
        self.faults[kind] += 1
        self.first.setdefault(kind, index)


def fuzz(name: str, *, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Test `count` inputs (a fraction of them for a slow reader) on the reader `name`, in a separate process.

    Args:
        on_done: Called about once a second with the number of tested inputs.
    """
    count = max(int(count * SHARES.get(name, 1.0)), 1)
    began, seen, deaths = time.perf_counter(), _Seen(), 0
    while seen.tried < count and deaths < _MOST_DEATHS:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_TMPFS if os.access(_TMPFS, os.W_OK) else None) as place:
            deaths += not _watched(Path(place), name, seen, seed=seed, count=count, on_done=on_done)
    on_done(seen.tried)
    wrong = sum(seen.faults.values())
    return Campaign(
        name=name,
        tried=seen.tried,
        survived=seen.tried - wrong,
        seconds=round(time.perf_counter() - began, 1),
        seed=seed,
        notes=f"{seen.read} read, {seen.tried - seen.read - wrong} refused, {deaths} crashes or hangs",
        failures=tuple(f"{kind} (input {seen.first[kind]}, {times} times)" for kind, times in seen.faults.items()),
    )


def _watched(place: Path, name: str, seen: _Seen, *, seed: int, count: int, on_done: Callable[[int], None]) -> bool:
    """Resume after the last tested input. Return False if an input ended the process, and record that as a failure."""
    first, read_before = seen.tried, seen.read
    (place / AT_NAME).write_bytes(struct.pack("<Q", first))
    (place / "own").mkdir()
    words = [sys.executable, "-m", "benchmarks.faults.fuzz_worker", name, str(place / "own")]
    with (place / "stderr").open("w+b") as errors:
        process = subprocess.Popen(
            [*words, str(seed), str(first), str(count)], stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            assert process.stdout is not None
            done = _heard(process.stdout, seen, read_before, on_done)
            process.wait()
        finally:
            _end_group(process)
        if done:
            return True
        at = struct.unpack("<Q", (place / AT_NAME).read_bytes())[0]
        seen.note(_death(process.returncode, errors), at)
        seen.tried = at + 1
    return False


def _heard(lines: IO[bytes], seen: _Seen, read_before: int, on_done: Callable[[int], None]) -> bool:
    for line in lines:
        try:
            message: Mapping[str, Any] = json.loads(line)
        except ValueError:  # other output that a library prints
            continue
        if "wrong" in message:
            seen.note(message["wrong"], message["index"])
        elif "at" in message:
            seen.tried, seen.read = message["at"], read_before + message["read"]
            on_done(seen.tried)
            if message.get("done"):
                return True
    return False


def _death(code: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    output = errors.read().decode("utf-8", "replace").strip().splitlines()
    if any(line.startswith("Timeout (") for line in output):
        frames = [line.strip() for line in output if "promptembedder" in line and "reliability_" not in line]
        return f"hang: {frames[0] if frames else output[-1]}"
    ending = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"process ended with {ending}: {output[-1][:200] if output else ''}"


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End the worker and its child processes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


FUZZED: dict[str, Callable[..., Campaign]] = {name: partial(fuzz, name) for name in READERS}
