"""Execution of a function in a forked process that may be killed at any moment."""

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from promptembedder.errors import ConfigError

__all__ = ["ChildEnd", "run_in_child"]

_POLL_S = 0.001
_TOLD_BYTES = 8000  # fits into a pipe, so that the child never blocks


@dataclass(frozen=True, kw_only=True)
class ChildEnd:
    """Outcome of a child process.

    Attributes:
        killed: True if the parent killed the child before it was done.
        error: Traceback of the child, or a message that it was stopped. None after success or a kill.
        seconds: Time from the fork to the end.
    """

    killed: bool
    error: str | None
    seconds: float


def run_in_child(
    work: Callable[[], object],
    *,
    kill_after_s: float | None = None,
    armed: Callable[[], bool] = lambda: True,
    limit_s: float = 300,
) -> ChildEnd:
    """Run `work` in a fork of this process. If `kill_after_s` is set, send SIGKILL that long after `armed` is True.

    A fork has all modules imported and starts immediately, so hundreds of kills take minutes. This process must not
    have computed a gradient before, because torch then refuses to compute gradients in a fork. The child's output is
    discarded.

    Args:
        limit_s: Time limit in seconds. A slower child counts as hanging and is killed.

    Raises:
        ConfigError: If the system has no fork.
    """
    if not hasattr(os, "fork"):
        raise ConfigError("faults are tried in forks of a process, and this system has none. Use Linux or macOS.")
    reading, writing = os.pipe()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; these are idle
        process = os.fork()
    if process == 0:
        os.close(reading)
        _work_and_end(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as errors:
        status, stopped = _waited(process, kill_after_s, armed, limit_s)
        error = errors.read().decode(errors="replace") or None
    seconds = time.perf_counter() - began
    killed = stopped and kill_after_s is not None and os.WIFSIGNALED(status)
    if not killed and os.WIFSIGNALED(status):
        error = f"still at work after {limit_s:g} s" if stopped else f"died of signal {os.WTERMSIG(status)}"
    return ChildEnd(killed=killed, error=None if killed else error, seconds=seconds)


def _work_and_end(work: Callable[[], object], writing: int) -> None:
    """Run `work` in the child, report its outcome, and end the process without returning to the parent's code."""
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        work()
        status = 0
    except BaseException:  # reported to the parent; ends this process
        os.write(writing, traceback.format_exc().encode()[-_TOLD_BYTES:])
    finally:
        os._exit(status)


def _waited(process: int, kill_after_s: float | None, armed: Callable[[], bool], limit_s: float) -> tuple[int, bool]:
    """Return the child's exit status, and True if this process killed it."""
    end = time.perf_counter() + limit_s
    waiting = kill_after_s is not None
    while True:
        if waiting and armed():
            end, waiting = time.perf_counter() + (kill_after_s or 0), False
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status, False
        if time.perf_counter() >= end:
            os.kill(process, signal.SIGKILL)
            return os.waitpid(process, 0)[1], True
        time.sleep(_POLL_S)
