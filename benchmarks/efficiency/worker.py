"""Processes that measure steps: memory is counted in a fresh one, and one that dies takes nobody with it."""

import contextlib
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from benchmarks.efficiency.methods import StepModel
from benchmarks.efficiency.step import StepMemory, StepMeter, StepTime
from benchmarks.memory import OutOfMemoryError, is_out_of_memory
from promptembedder.errors import PromptEmbedderError

__all__ = ["ProcessWorker", "StartWorker", "Worker"]

_EXCESS = 86  # exit code of a process that took more memory than it may


@runtime_checkable
class Worker(Protocol):
    """Measures the steps of one method; what `StepMeter` does, here or in another process."""

    def measure(self, length: int, batch: int) -> StepMemory:
        """Memory of a step; the first thing that is asked of a worker."""
        ...

    def timed(self, length: int, batch: int) -> StepTime:
        """Time of a step."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...


StartWorker = Callable[[StepModel, int | None], Worker]


class ProcessWorker:
    """A `StepMeter` in a process of its own, forked from one that has imported the libraries and done nothing else."""

    def __init__(self, model: StepModel, limit_bytes: int | None) -> None:
        """Start the process; it ends when it takes more than `limit_bytes`."""
        context = _context()
        self.model = model
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, model, limit_bytes), name=f"bench {model.method}", daemon=True
        )
        self._process.start()
        theirs.close()  # else its death would not close the pipe

    def measure(self, length: int, batch: int) -> StepMemory:
        """Memory of a step.

        Raises:
            OutOfMemoryError: It does not fit.
            PromptEmbedderError: The model cannot be built.
        """
        memory: StepMemory = self._ask("measure", length, batch)
        return memory

    def timed(self, length: int, batch: int) -> StepTime:
        """Time of a step; raises what `measure` raises."""
        taken: StepTime = self._ask("timed", length, batch)
        return taken

    def close(self) -> None:
        """End the process; it holds nothing that is worth a farewell."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def _ask(self, what: str, length: int, batch: int) -> Any:
        try:
            self._pipe.send((what, length, batch))
            outcome, content = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code = self._process.exitcode
            if code in (_EXCESS, -signal.SIGKILL):  # its own limit, or the kernel's way to say that memory is out
                raise OutOfMemoryError(f"the process that measured {self.model.method} was ended") from error
            raise RuntimeError(f"the process that measured {self.model.method} ended with code {code}") from error
        if outcome == "done":
            return content
        if outcome == "refused":
            raise content
        if outcome == "out of memory":
            raise OutOfMemoryError(content)
        raise RuntimeError(f"measuring {self.model.method} failed in its process:\n{content}")


def _context() -> BaseContext:
    """Children that start in a moment, with all imports done, and yet share nothing that has been used."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _go_first() -> None:
    """When the machine runs out of memory after all, Linux shall end this process and no other program's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _serve(pipe: Connection, model: StepModel, limit_bytes: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    _go_first()
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|torch|peft|accelerate)\..*")
    meter = StepMeter(model, limit_bytes=limit_bytes, on_excess=lambda: os._exit(_EXCESS))
    while True:
        try:
            what, length, batch = pipe.recv()
        except EOFError:  # the parent is gone
            return
        try:
            pipe.send(("done", getattr(meter, what)(length, batch)))
        except PromptEmbedderError as error:
            pipe.send(("refused", error))
        except Exception as error:  # told to the parent, which raises it
            kind = "out of memory" if is_out_of_memory(error) else "failed"
            pipe.send((kind, traceback.format_exc()))
            if kind == "failed":
                raise
