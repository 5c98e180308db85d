"""How many rows are done, on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from promptembedder.cli.console import err

if TYPE_CHECKING:
    from promptembedder.batch import CorpusProgress

__all__ = ["corpus_progress", "row_count"]


@contextmanager
def row_count() -> Iterator[Callable[[int], None]]:
    """A count of rows on stderr; how many there will be is known only at the end of the last file."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed} rows"),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda rows: progress.advance(task, rows)


@contextmanager
def corpus_progress() -> "Iterator[Callable[[CorpusProgress], None]]":
    """Rows of the whole corpus on stderr, with the speed of this run and the time that is left."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows, {task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=None, speed="reading the files")
        first: CorpusProgress | None = None
        start = 0.0

        def show(at: "CorpusProgress") -> None:
            nonlocal first, start
            if first is None:
                first, start = at, time.perf_counter()
                progress.reset(task, total=at.of_rows, completed=at.rows, speed="loading the model")
                return
            seconds = time.perf_counter() - start
            speed = f"{(at.rows - first.rows) / seconds:.0f} rows/s, {at.tokens / seconds:.0f} tokens/s"
            progress.update(task, completed=at.rows, speed=speed)

        yield show
