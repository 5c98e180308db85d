"""Worker processes that measure steps, so that memory is measured in a fresh process and a crash stays isolated."""

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

_EXCESS = 86  # exit code of a process that exceeded its memory limit


@runtime_checkable
class Worker(Protocol):
    """Meter of the steps of one method, with the interface of `StepMeter`, in this or another process."""

    def measure(self, length: int, batch: int) -> StepMemory:
        """Measure the memory of a step. Must be the first call of a worker."""
        ...

    def timed(self, length: int, batch: int) -> StepTime:
        """Measure the time of a step."""
        ...

    def close(self) -> None:
        """Free all memory."""
        ...


StartWorker = Callable[[StepModel, int | None], Worker]


class ProcessWorker:
    """`StepMeter` in its own process, forked from a server that has only imported the libraries."""

    def __init__(self, model: StepModel, limit_bytes: int | None) -> None:
        """Start the process. It ends if it exceeds `limit_bytes`."""
        context = _context()
        self.model = model
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, model, limit_bytes), name=f"bench {model.method}", daemon=True
        )
        self._process.start()
        theirs.close()  # otherwise the end of the process would not close the pipe

    def measure(self, length: int, batch: int) -> StepMemory:
        """Measure the memory of a step.

        Raises:
            OutOfMemoryError: If the step does not fit.
            PromptEmbedderError: If the model cannot be built.
        """
        memory: StepMemory = self._ask("measure", length, batch)
        return memory

    def timed(self, length: int, batch: int) -> StepTime:
        """Measure the time of a step. Raises the same errors as `measure`."""
        taken: StepTime = self._ask("timed", length, batch)
        return taken

    def close(self) -> None:
        """End the process without a graceful shutdown."""
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
            if code in (_EXCESS, -signal.SIGKILL):  # own limit, or the kernel's OOM killer
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
    """Return a fork-server context: processes start fast, with all imports done, and share no used state."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _go_first() -> None:
    """Make this process the first choice of Linux's OOM killer."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _serve(pipe: Connection, model: StepModel, limit_bytes: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which ends this process
    _go_first()
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|torch|peft|accelerate)\..*")
    meter = StepMeter(model, limit_bytes=limit_bytes, on_excess=lambda: os._exit(_EXCESS))
    while True:
        try:
            what, length, batch = pipe.recv()
        except EOFError:  # the parent has ended
            return
        try:
            pipe.send(("done", getattr(meter, what)(length, batch)))
        except PromptEmbedderError as error:
            pipe.send(("refused", error))
        except Exception as error:  # sent to the parent, which raises it
            kind = "out of memory" if is_out_of_memory(error) else "failed"
            pipe.send((kind, traceback.format_exc()))
            if kind == "failed":
                raise
