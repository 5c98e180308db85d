"""Fuzzed readers and the operations that are forbidden to them."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.fuzz_inputs import Mutation
from promptembedder.errors import PromptEmbedderError

__all__ = ["FuzzedReader", "OutsideWatch"]

_MOST_MESSAGE_CHARS = 4000
_TIME_ZONES = "/usr/share/zoneinfo"  # zoneinfo opens files in this folder by the names of time zones
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


@dataclass(frozen=True, kw_only=True)
class FuzzedReader:
    """Reader of hostile inputs, with valid inputs as seeds.

    Attributes:
        seeds: Valid inputs, from which hostile inputs are derived.
        mutate: Mutation of the seeds.
        read: Reads one input, either from memory or from a file in the reader's own folder.
        refusals: Exception types that are documented refusals. Any other exception is a fault.
        stays_inside: If True, the reader may open only its own folder, because the paths of the input are untrusted.
    """

    seeds: Sequence[bytes]
    mutate: Mutation
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (PromptEmbedderError,)
    stays_inside: bool = True

    def outcome(self, data: bytes, watch: "OutsideWatch") -> str | None:
        """Return None if the input is read, `""` if it is refused as documented, else a description of the fault."""
        fault: str | None = None
        with watch:
            try:
                self.read(data)
            except self.refusals as error:
                wrong = _wrong_with(str(error))
                fault = "" if wrong is None else f"message {wrong}, {_place(error)}"
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # includes panics of third-party libraries
                fault = f"{type(error).__name__}: {str(error)[:120]!r}, {_place(error)}"
        if self.stays_inside and watch.seen:
            return f"did {watch.seen[0]}"
        return fault


class OutsideWatch:
    """Context that records files opened outside a folder, started processes, and network connections."""

    def __init__(self, folder: Path) -> None:
        """Watch accesses outside `folder` and outside Python's own folders, from which modules may be loaded."""
        homes = {folder, *(Path(place) for place in (sys.prefix, sys.base_prefix, _TIME_ZONES, *sys.path) if place)}
        self._homes = tuple(str(home.resolve()) + os.sep for home in homes)
        self._on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def __enter__(self) -> None:
        self.seen = []
        self._on = True

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            if "\0" not in path and not (os.path.realpath(path) + os.sep).startswith(self._homes):
                self.seen.append(f"open {path[:80]!r}")
        elif event in _FORBIDDEN:
            self.seen.append(f"{event} {str(arguments)[:80]}")


def _wrong_with(message: str) -> str | None:
    if not message.strip():
        return "is blank"
    if len(message) > _MOST_MESSAGE_CHARS:
        return "too long"
    if any("\ud800" <= character <= "\udfff" for character in message):
        return "with a lone surrogate, which cannot be printed"
    return None


def _place(error: BaseException) -> str:
    """Return the last location in the library that the error passed, and the location where it was raised."""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{code.co_name}")
        trace = trace.tb_next
    traced = [place for place in places[1:] if not place.startswith("reliability_")]
    return f"in {traced[0] if traced else '?'} ... {places[-1] if places else '?'}"
