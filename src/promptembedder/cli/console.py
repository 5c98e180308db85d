"""Console output: reports, one-line errors and progress."""

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
import typer
from rich.console import Console
from rich.logging import RichHandler
from promptembedder.errors import PromptEmbedderError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
import time
from collections.abc import Callable, Iterator
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
if TYPE_CHECKING:
    from promptembedder.batch import CorpusProgress

__all__ = ['Report', 'TrainingBar', 'corpus_progress', 'importing', 'one_line_errors', 'prepare', 'row_count']

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


class Report:
    """What a command has to say: a table and words for people, or one JSON object as the last line of stdout."""

    def __init__(self, as_json: bool, *, speaks: bool = True) -> None:
        """Speak JSON if `as_json`.

        Args:
            speaks: False says nothing: another process of the same run speaks.
        """
        self.as_json, self.speaks = as_json, speaks

    def say(self, *words: Any) -> None:
        """A sentence, table or other rich object for people; goes to stderr when stdout is for JSON."""
        if self.speaks:
            (err if self.as_json else out).print(*words, soft_wrap=all(isinstance(word, str) for word in words))

    def page(self, markdown: str) -> None:
        """A page of Markdown for people; goes where `say` goes."""
        from rich.markdown import Markdown  # a tenth of the time that `--help` takes

        self.say(Markdown(markdown))

    def result(self, content: dict[str, Any]) -> None:
        """The command's result; printed only as JSON, since people were told with `say`."""
        if self.as_json and self.speaks:
            print(json.dumps(content, ensure_ascii=False))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit code 2."""
    try:
        yield
    except (PromptEmbedderError, ImportError) as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        err.print("stopped", style="yellow")
        raise typer.Exit(130) from error


@contextmanager
def importing() -> Iterator[None]:
    """Modules are no garbage: while this lasts Python looks for none, and later not among what was imported.

    Looking takes a sixth of the time of importing, as long again while a model is loaded, and a second at the end.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def prepare() -> None:
    """Quiet foreign loggers, once, before they are imported."""
    handler = RichHandler(console=err, show_path=False, show_time=False)
    handler.setLevel(logging.INFO)  # bm25s raises its own logger to DEBUG when it is imported
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # transformers imports torchao where it is installed, which warns of kernels for GPUs that are not there
    for name in ("sentence_transformers", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|torch|accelerate|datasets)\..*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn and deadlock otherwise
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]


class TrainingBar(TrainerCallback):
    """Shows where a training run is."""

    def __init__(self) -> None:
        """Nothing is shown before the first step."""
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
        )
        self._task: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar, at the resumed step if there is one."""
        self._progress.start()
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest loss and the soft tokens' entropy."""
        if logs and "loss" in logs:
            note = f"loss {float(logs['loss']):.3f}"
            if "soft_token_entropy" in logs:
                note += f"  entropy {logs['soft_token_entropy']:.2f}"
            self._progress.update(self._task, note=note)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the finished bar on screen."""
        self._progress.stop()


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
