"""Progress of long work on stderr: a bar on a terminal, plain lines with rate and remaining time elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from promptembedder.cli.console import err

if TYPE_CHECKING:  # slow imports that `--help` does not need
    from transformers import TrainerCallback, TrainerState

    from promptembedder.batch import CorpusProgress

__all__ = ["ProgressDisplay", "corpus_progress", "count_rows", "format_duration", "row_progress", "training_progress"]

_LINE_EVERY_S = 30.0
_SHORT_WORK_S = 60.0  # shorter work needs no estimate


class ProgressDisplay:
    """Progress of work that consists of equal units, such as rows or training steps.

    On a terminal it is a bar. Elsewhere, as in a log file, it is one plain line every 30 seconds. Long work begins with
    one line that estimates its duration from the first units.
    """

    def __init__(
        self,
        unit: str,
        *,
        total: int | None = None,
        measured: int = 50,
        console: Console = err,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the display. It appears on entering the context.

        Args:
            unit: Plural of the unit, such as `rows`.
            total: Number of units. If None, unknown: neither the estimate nor the remaining time is shown.
            measured: Number of units that the estimate is based on.
            clock: Returns the time in seconds.
        """
        self._unit, self._total, self._measured = unit, total, measured
        self._console, self._clock = console, clock
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("[cyan]{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, note="")
        self._completed, self._note = 0, ""
        self._first: tuple[int, float] | None = None  # units and time after the first batch, which includes loading
        self._last_line = clock()
        self._estimated = False

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def restart(self, *, total: int, completed: int) -> None:
        """Set the total, which is known only now, and the units that an earlier run has completed."""
        self._total, self._completed = total, completed
        self._bar.reset(self._task, total=total, completed=completed)

    def advance(self, count: int = 1, *, note: str | None = None) -> None:
        """Add completed units."""
        self.update(self._completed + count, note=note)

    def update(self, completed: int, *, note: str | None = None) -> None:
        """Set the number of completed units.

        Args:
            note: Text to show, such as the latest loss. If None, the previous one.
        """
        now = self._clock()
        if self._first is None and completed > self._completed:
            self._first = completed, now
        self._completed, self._note = completed, self._note if note is None else note
        self._bar.update(self._task, completed=completed, note=self._note)
        self._print_estimate(now)
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self._print(self._line(now))

    def _print_estimate(self, now: float) -> None:
        if self._estimated or self._first is None or self._total is None:
            return
        rate, units = self._rate(now), self._completed - self._first[0]
        if units < self._measured or rate is None:
            return
        self._estimated = True
        remaining = (self._total - self._completed) / rate
        if remaining > _SHORT_WORK_S:
            self._print(
                f"estimate: {format_duration(remaining)} left at {rate:.3g} {self._unit}/s on this machine "
                f"({units} {self._unit_of(units)} measured)"
            )

    def _line(self, now: float) -> str:
        count = f"{self._completed}" if self._total is None else f"{self._completed} of {self._total}"
        parts, rate = [f"{count} {self._unit_of(self._total or self._completed)}"], self._rate(now)
        if rate is not None:
            parts.append(f"{rate:.3g} {self._unit}/s")
            if self._total is not None:
                parts.append(f"{format_duration((self._total - self._completed) / rate)} left")
        return ", ".join([*parts, self._note] if self._note else parts)

    def _rate(self, now: float) -> float | None:
        """Return the units per second since the first batch, or None before the second one."""
        if self._first is None or self._completed <= self._first[0] or now <= self._first[1]:
            return None
        return (self._completed - self._first[0]) / (now - self._first[1])

    def _unit_of(self, count: int) -> str:
        return self._unit.removesuffix("s") if count == 1 else self._unit

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Format a duration with two significant digits: 45 s, 12 min, 5.6 h, 2.1 days."""
    for name, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            value = seconds / length
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{seconds:.0f} s"


def count_rows(files: Sequence[Path]) -> int | None:
    """Count the rows of the files, or return None if one of them is a pipe, which can be read only once."""
    from promptembedder.data import read_rows

    return sum(1 for path in files for _ in read_rows(path)) if all(path.is_file() for path in files) else None


@contextmanager
def row_progress(total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show the progress over rows. The yielded function adds completed rows."""
    with ProgressDisplay("rows", total=total) as display:
        yield lambda rows: display.advance(rows)


@contextmanager
def corpus_progress() -> "Iterator[Callable[[CorpusProgress], None]]":
    """Show the progress over a corpus, whose total is known once all files are read."""
    with ProgressDisplay("rows") as display:
        display.update(0, note="reading the files")
        started = False

        def show(at: "CorpusProgress") -> None:
            nonlocal started
            if not started:
                started = True
                display.restart(total=at.total_rows, completed=at.rows)
                display.update(at.rows, note="loading the model")
            else:
                display.update(at.rows, note="")

        yield show


@contextmanager
def unit_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show several kinds of work one after the other: called with the unit, the completed ones and the total."""
    with ExitStack() as stack:
        displays: dict[str, ProgressDisplay] = {}

        def show(unit: str, completed: int, total: int) -> None:
            if unit not in displays:
                stack.close()  # the bar of the earlier kind
                displays[unit] = stack.enter_context(ProgressDisplay(unit, total=total))
            displays[unit].update(completed)

        yield show


def training_progress() -> "TrainerCallback":
    """Create the callback that shows the step of a training run, the latest loss and the soft tokens' entropy."""
    from transformers import TrainerCallback

    class TrainingProgress(TrainerCallback):
        """Progress from the current step, which is not 0 for a resumed run."""

        def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **_: Any) -> None:
            self._display = ProgressDisplay("steps", measured=5)
            self._display.restart(total=state.max_steps, completed=state.global_step)
            self._display.__enter__()

        def on_step_end(self, args: Any, state: "TrainerState", control: Any, **_: Any) -> None:
            self._display.update(state.global_step)

        def on_log(
            self, args: Any, state: "TrainerState", control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                note = f"loss {float(logs['loss']):.3f}"
                if "soft_token_entropy" in logs:
                    note += f"  entropy {logs['soft_token_entropy']:.2f}"
                self._display.update(state.global_step, note=note)

        def on_train_end(self, args: Any, state: "TrainerState", control: Any, **_: Any) -> None:
            self._display.__exit__()

    return TrainingProgress()
