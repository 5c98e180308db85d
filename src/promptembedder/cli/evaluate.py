"""`promptembedder evaluate MODEL --tasks ...`: scores on task files or official mteb tasks."""

import shlex
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from promptembedder.cli.console import Report, err, importing, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, QuantizationOption, ReaderOption
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, file_sha256, machine_facts, versions, write_json

if TYPE_CHECKING:  # importing these takes seconds, and `--help` needs none of them
    from promptembedder.evaluation import EvaluationTask, HubTask, InstructionSteering, TaskScore
    from promptembedder.model import OpenedModel

    Tasks = list[EvaluationTask] | list[HubTask]

__all__ = ["evaluate"]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The command's options as they came to be: from flags, environment, file or default."""

    model: str
    tasks: str
    only: list[str]
    limit: int | None
    seed: int
    paraphrases: bool
    reader: str | None
    quantization: str | None
    exit_depth: float | None
    batch_size: int
    max_length: int | None
    output: Path | None


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    scores: "list[TaskScore]"
    steering: "list[InstructionSteering]"
    seconds: float

    @property
    def mean(self) -> float:
        return statistics.fmean(score.score for score in self.scores)


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A saved model, frozen:WAY:BACKBONE, or any sentence-transformers model.")
    ],
    tasks: Annotated[str, typer.Option(help="Task file (.json), or names of mteb's tasks, separated by commas.")],
    only: Annotated[list[str] | None, typer.Option(help="These tasks of the file alone.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of each task that are scored; by default all.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the rows of --limit.")] = 0,
    paraphrases: Annotated[
        bool, typer.Option("--paraphrases", help="Score three other wordings of each instruction, too.")
    ] = False,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    exit_depth: Annotated[
        float | None,
        typer.Option(help="Share of the reader's layers that texts go through; by default the model's own."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts read at once.")] = 64,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens read of each text; by default the model's own.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results file (JSON) to write.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model with mteb: similarity, classification, clustering, retrieval.

    Example: promptembedder evaluate runs/mine --tasks tasks.json --limit 200
    """
    report = Report(as_json)
    options = _Options(
        model=model,
        tasks=tasks,
        only=only or [],
        limit=limit,
        seed=seed,
        paraphrases=paraphrases,
        reader=reader,
        quantization=quantization,
        exit_depth=exit_depth,
        batch_size=batch_size,
        max_length=max_length,
        output=output,
    )
    with one_line_errors():
        outcome, record = _evaluated(options, report)
    report.say(_table(outcome, options))
    for steering in outcome.steering:
        report.say(_steering_table(steering))
    if output is not None:
        report.say(f"written: {escape(str(output))}")
    for score in record["scores"]:
        del score["details"]  # hundreds of numbers; the file has them
    report.result(record)


def _evaluated(options: _Options, report: Report) -> "tuple[_Outcome, dict[str, Any]]":
    if options.output is not None and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise ConfigError(f"cannot write {options.output}: it must be a file in a folder that exists.")
    tasks = _tasks(options)
    from promptembedder.model import open_model

    opened = open_model(
        options.model, reader=options.reader, quantization=options.quantization, exit_depth=options.exit_depth
    )
    if options.max_length is not None:
        opened.model.max_seq_length = options.max_length
    if options.paraphrases and not opened.takes_instructions:
        report.say(f"{escape(options.model)} takes no instructions: it is scored without any, and without paraphrases.")
    outcome = _scored(opened, tasks, options)
    record = _record(opened, tasks, outcome, options)
    if options.output is not None:
        write_json(options.output, record)
    return outcome, record


def _tasks(options: _Options) -> "Tasks":
    with importing():  # seconds
        from promptembedder.evaluation import hub_tasks, read_tasks, subsample

    if not _is_file(options.tasks):
        if options.limit is not None or options.only:
            raise ConfigError("--limit and --only are for task files; of mteb's own tasks name those to be scored.")
        return hub_tasks([name.strip() for name in options.tasks.split(",") if name.strip()])
    tasks = read_tasks(Path(options.tasks), only=options.only)
    if options.limit is None:
        return tasks
    return [subsample(task, options.limit, seed=options.seed) for task in tasks]


def _is_file(tasks: str) -> bool:
    return tasks.endswith(".json") or Path(tasks).is_file()


def _scored(opened: "OpenedModel", tasks: "Tasks", options: _Options) -> _Outcome:
    from promptembedder.evaluation import instruction_steering, paraphrases_of, score_tasks, steered_pairs

    start = time.perf_counter()
    asked = options.paraphrases and opened.takes_instructions
    wordings = {task.name: paraphrases_of(task.name, task.instruction, task.paraphrases) for task in tasks if asked}
    pairs = steered_pairs(tasks) if asked else []
    scores, steering = [], []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=len(tasks) + len(pairs))
        for task in tasks:
            progress.update(bar, description=escape(task.name))
            scores += score_tasks(
                opened.model,
                [task],
                takes_instructions=opened.takes_instructions,
                batch_size=options.batch_size,
                wordings=wordings,
            )
            progress.advance(bar)
        for coarse, fine in pairs:
            progress.update(bar, description="steering")
            steering.append(instruction_steering(opened.model, coarse, fine, batch_size=options.batch_size))
            progress.advance(bar)
    return _Outcome(scores=scores, steering=steering, seconds=time.perf_counter() - start)


def _record(opened: "OpenedModel", tasks: "Tasks", outcome: _Outcome, options: _Options) -> dict[str, Any]:
    task_file = [Path(options.tasks)] if _is_file(options.tasks) else []
    files = [*task_file, *(file for task in tasks for file in task.files)]
    manifest = Path(options.model) / MANIFEST_NAME
    tokens = [score.tokens for score in outcome.scores]
    return {
        "model": options.model,
        "provenance": opened.provenance,
        "model_sha256": file_sha256(manifest) if manifest.is_file() else None,
        "takes_instructions": opened.takes_instructions,
        "max_length": opened.model.max_seq_length,
        "mean": outcome.mean,
        "scores": [asdict(score) for score in outcome.scores],
        "steering": [{**asdict(steering), "gain": steering.gain} for steering in outcome.steering],
        "data_sha256": {str(file): file_sha256(file) for file in dict.fromkeys(files)},
        "versions": versions(),
        "machine": {**machine_facts(), "device": str(opened.model.device)},
        "seconds": outcome.seconds,
        "tokens": None if None in tokens else sum(token for token in tokens if token is not None),
        "options": {**asdict(options), "output": None if options.output is None else str(options.output)},
        "command": shlex.join(sys.argv),
    }


def _table(outcome: _Outcome, options: _Options) -> Table:
    table = Table(
        title=f"{escape(options.model)} on {escape(options.tasks)}", title_justify="left", box=SIMPLE, pad_edge=False
    )
    worded = any(score.mean is not None for score in outcome.scores)
    for name in ("task", "type", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", *(("paraphrased",) if worded else ()), "rows", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in outcome.scores:
        rows = str(score.rows) if score.rows == score.rows_total else f"{score.rows} of {score.rows_total}"
        spread = [] if not worded else [_spread(score.mean, score.spread)]
        words = (score.task, score.type, score.metric)
        table.add_row(*map(escape, words), f"{score.score:.2f}", *spread, rows, f"{score.seconds:.0f}")
    means = [score.mean for score in outcome.scores if score.mean is not None]
    table.add_section()
    total = [] if not worded else [_spread(statistics.fmean(means), None)]
    table.add_row("mean", "", "", f"{outcome.mean:.2f}", *total, "", f"{outcome.seconds:.0f}", style="bold")
    if worded:
        table.caption = "paraphrased: mean ± standard deviation over other wordings of the instruction"
    return table


def _spread(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _steering_table(steering: "InstructionSteering") -> Table:
    table = Table(title=f"the right instruction is worth {steering.gain:+.2f} points", title_justify="left", box=SIMPLE)
    table.add_column("task")
    for name in ("own instruction", "the other's"):
        table.add_column(name, justify="right")
    table.add_row(escape(steering.coarse), f"{steering.coarse_own:.2f}", f"{steering.coarse_other:.2f}")
    table.add_row(escape(steering.fine), f"{steering.fine_own:.2f}", f"{steering.fine_other:.2f}")
    return table
