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
from rich.table import Table

from promptembedder.cli.console import Report, gc_paused, one_line_errors
from promptembedder.cli.evaluate_aspects import evaluate_aspects, evaluate_questions, write_record
from promptembedder.cli.options import (
    ConfigOption,
    DeviceOption,
    DimensionsOption,
    EarlyExitOption,
    JsonOption,
    MaxLengthOption,
    QuantizationOption,
    ReaderOption,
)
from promptembedder.cli.progress import ProgressDisplay
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, check_writable, describe_machine, file_sha256, versions, write_json

if TYPE_CHECKING:  # slow imports that `--help` does not need
    from promptembedder.evaluation import EvaluationTask, HubTask, InstructionSteering, TaskScore
    from promptembedder.model import LoadedEncoder

    Tasks = list[EvaluationTask] | list[HubTask]

__all__ = ["evaluate"]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Resolved options of the command."""

    model: str
    tasks: str
    only: list[str]
    limit: int | None
    seed: int
    paraphrases: bool
    reader: str | None
    quantization: str | None
    early_exit_fraction: float | None
    batch_size: int
    max_length: int | None
    dimensions: int | None
    device: str | None
    output: Path | None


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Scores of all tasks."""

    scores: "list[TaskScore]"
    steering: "list[InstructionSteering]"
    seconds: float

    @property
    def mean(self) -> float:
        return statistics.fmean(score.score for score in self.scores)


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Saved model, frozen:POOLING:BACKBONE, or any sentence-transformers model.")
    ],
    tasks: Annotated[
        str | None, typer.Option(help="Task file (.json), or names of mteb tasks separated by commas.")
    ] = None,
    aspects: Annotated[
        Path | None, typer.Option(help="File of conflict triplets (.json) that measures steering, instead of --tasks.")
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="File of texts with questions and answers that measures answer choice. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a task of the file to score. Repeatable. Default: all.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows scored per task. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed that draws the rows of --limit.")] = 0,
    paraphrases: Annotated[
        bool, typer.Option("--paraphrases", help="Also score under three other wordings of each instruction.")
    ] = False,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    early_exit_fraction: EarlyExitOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per batch.")] = 64,
    max_length: MaxLengthOption = None,
    dimensions: DimensionsOption = None,
    device: DeviceOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results file (JSON).")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model with mteb: similarity, classification, clustering, retrieval.

    Example: promptembedder evaluate runs/mine --tasks tasks.json --limit 200
    """
    report = Report(as_json)
    options = _Options(
        model=model,
        tasks=tasks or "",
        only=only or [],
        limit=limit,
        seed=seed,
        paraphrases=paraphrases,
        reader=reader,
        quantization=quantization,
        early_exit_fraction=early_exit_fraction,
        batch_size=batch_size,
        max_length=max_length,
        dimensions=dimensions,
        device=device,
        output=output,
    )
    with one_line_errors():
        if [bool(tasks), aspects is not None, bool(questions)].count(True) != 1:
            raise ConfigError("evaluate needs one of --tasks, --aspects and --questions. Give one of them.")
        if aspects is not None or questions:
            _check_output(output)
            loaded = _load_model(options)
            if aspects is not None:
                record = evaluate_aspects(loaded, aspects, report, name=model, limit=limit, batch_size=batch_size)
            else:
                paths = questions or []
                record = evaluate_questions(loaded, paths, report, name=model, limit=limit, batch_size=batch_size)
            return write_record(record, output, report)
        outcome, record = _evaluate(options, report)
    report.print(_table(outcome, options))
    for steering in outcome.steering:
        report.print(_steering_table(steering))
    with one_line_errors():
        if output is not None:
            write_json(output, record)
            report.print(f"written: {escape(str(output))}")
    for score in record["scores"]:
        del score["details"]  # hundreds of numbers, which the results file contains
    report.result(record)


def _evaluate(options: _Options, report: Report) -> "tuple[_Outcome, dict[str, Any]]":
    _check_output(options.output)
    tasks = _load_tasks(options, report)
    loaded = _load_model(options)
    if options.paraphrases and not loaded.takes_instructions:
        report.print(f"{escape(options.model)} takes no instructions and is scored without paraphrases.")
    outcome = _score(loaded, tasks, options)
    return outcome, _record(loaded, tasks, outcome, options)


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}. Give a file in an existing folder.")
    check_writable(output)


def _load_model(options: _Options) -> "LoadedEncoder":
    from promptembedder.model import load_encoder

    loaded = load_encoder(
        options.model,
        reader=options.reader,
        quantization=options.quantization,
        early_exit_fraction=options.early_exit_fraction,
        device=options.device,
    )
    dim = loaded.model.get_embedding_dimension()
    if options.dimensions is not None and options.dimensions > (dim or options.dimensions):
        raise ConfigError(f"--dimensions must be between 1 and {dim}, got {options.dimensions}.")
    if options.dimensions is not None:
        loaded.model.truncate_dim = options.dimensions
    if options.max_length is not None:
        loaded.model.max_seq_length = options.max_length
    return loaded


def _load_tasks(options: _Options, report: Report) -> "Tasks":
    with gc_paused():  # seconds
        from promptembedder.evaluation import hub_tasks, read_tasks, subsample

    if not _is_file(options.tasks):
        if options.limit is not None or options.only:
            raise ConfigError("--limit and --only need a task file. For mteb tasks, list the names in --tasks.")
        return hub_tasks([name.strip() for name in options.tasks.split(",") if name.strip()])
    tasks = read_tasks(Path(options.tasks), only=options.only)
    if options.limit is None:
        return tasks
    small = [task for task in tasks if task.rows < options.limit]
    if small:
        names = ", ".join(f"{task.name} ({task.rows})" for task in small)
        report.print(escape(f"fewer rows than --limit {options.limit}, all of them scored: {names}"))
    return [subsample(task, min(options.limit, task.rows), seed=options.seed) for task in tasks]


def _is_file(tasks: str) -> bool:
    return tasks.endswith(".json") or Path(tasks).is_file()


def _score(loaded: "LoadedEncoder", tasks: "Tasks", options: _Options) -> _Outcome:
    from promptembedder.evaluation import (
        HubTask,
        instruction_pairs,
        instruction_steering,
        paraphrases_of,
        score_tasks,
    )

    start = time.perf_counter()
    use_wordings = options.paraphrases and loaded.takes_instructions
    wordings = {
        task.name: paraphrases_of(task.name, task.instruction, task.paraphrases) for task in tasks if use_wordings
    }
    pairs = instruction_pairs(tasks) if use_wordings else []
    scores, steering = [], []
    # rows weigh tasks of different sizes; those of a hub task are unknown before it is loaded
    sized = _is_file(options.tasks)
    rows = {task.name: 1 if isinstance(task, HubTask) else task.rows_used + task.documents_used for task in tasks}
    with ProgressDisplay("rows" if sized else "tasks", total=sum(rows.values()), measured=1) as progress:
        for task in tasks:
            progress.advance(0, note=task.name)
            scores += score_tasks(
                loaded.model,
                [task],
                takes_instructions=loaded.takes_instructions,
                batch_size=options.batch_size,
                wordings=wordings,
            )
            progress.advance(rows[task.name])
        for coarse, fine in pairs:
            progress.advance(0, note="steering")
            steering.append(instruction_steering(loaded.model, coarse, fine, batch_size=options.batch_size))
    return _Outcome(scores=scores, steering=steering, seconds=time.perf_counter() - start)


def _record(loaded: "LoadedEncoder", tasks: "Tasks", outcome: _Outcome, options: _Options) -> dict[str, Any]:
    task_file = [Path(options.tasks)] if _is_file(options.tasks) else []
    files = [*task_file, *(file for task in tasks for file in task.files)]
    manifest = Path(options.model) / MANIFEST_NAME
    tokens = [score.tokens for score in outcome.scores]
    return {
        "model": options.model,
        "provenance": loaded.provenance,
        "model_sha256": file_sha256(manifest) if manifest.is_file() else None,
        "takes_instructions": loaded.takes_instructions,
        "max_length": loaded.model.max_seq_length,
        "mean": outcome.mean,
        "scores": [asdict(score) for score in outcome.scores],
        "steering": [{**asdict(steering), "gain": steering.gain} for steering in outcome.steering],
        "data_sha256": {str(file): file_sha256(file) for file in dict.fromkeys(files)},
        "versions": versions(),
        "machine": {**describe_machine(), "device": str(loaded.model.device)},
        "seconds": outcome.seconds,
        "tokens": None if None in tokens else sum(token for token in tokens if token is not None),
        "options": {**asdict(options), "output": None if options.output is None else str(options.output)},
        "command": shlex.join(sys.argv),
    }


def _table(outcome: _Outcome, options: _Options) -> Table:
    table = Table(
        title=f"{escape(options.model)} on {escape(options.tasks)}", title_justify="left", box=SIMPLE, pad_edge=False
    )
    has_wordings = any(score.mean is not None for score in outcome.scores)
    for name in ("task", "type", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", *(("paraphrased",) if has_wordings else ()), "rows", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in outcome.scores:
        rows = str(score.rows) if score.rows == score.rows_total else f"{score.rows} of {score.rows_total}"
        spread = [] if not has_wordings else [_format_spread(score.mean, score.spread)]
        names = (score.task, score.type, score.metric)
        table.add_row(*map(escape, names), f"{score.score:.2f}", *spread, rows, f"{score.seconds:.0f}")
    means = [score.mean for score in outcome.scores if score.mean is not None]
    table.add_section()
    total = [] if not has_wordings else [_format_spread(statistics.fmean(means), None)]
    table.add_row("mean", "", "", f"{outcome.mean:.2f}", *total, "", f"{outcome.seconds:.0f}", style="bold")
    if has_wordings:
        table.caption = "paraphrased: mean ± standard deviation over other wordings of the instruction"
    return table


def _format_spread(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _steering_table(steering: "InstructionSteering") -> Table:
    table = Table(
        title=f"gain from the right instruction: {steering.gain:+.2f} points", title_justify="left", box=SIMPLE
    )
    table.add_column("task")
    for name in ("own instruction", "other instruction"):
        table.add_column(name, justify="right")
    table.add_row(escape(steering.coarse), f"{steering.coarse_own:.2f}", f"{steering.coarse_other:.2f}")
    table.add_row(escape(steering.fine), f"{steering.fine_own:.2f}", f"{steering.fine_other:.2f}")
    return table
