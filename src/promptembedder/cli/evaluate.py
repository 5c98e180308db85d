"""`promptembedder evaluate MODEL`: scores on task files or official mteb tasks, or measures of steering."""

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, gc_paused
from promptembedder.cli.options import (
    ConfigOption,
    DeviceOption,
    DimensionsOption,
    EarlyExitOption,
    JsonOption,
    MaxBatchTokensOption,
    MaxLengthOption,
    PrecisionOption,
    QuantizationOption,
    ReaderOption,
    check_output_file,
)
from promptembedder.cli.progress import ProgressDisplay
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, describe_machine, file_sha256, versions, write_json

if TYPE_CHECKING:  # slow imports that `--help` does not need
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from promptembedder.batch import VectorFormat
    from promptembedder.evaluation import EvaluationTask, HubTask, InstructionSteering, TaskScore
    from promptembedder.evaluation.aspects import AnswerChoiceScore, AspectScore
    from promptembedder.model import Encoder, LoadedEncoder

    Tasks = list[EvaluationTask] | list[HubTask]

__all__ = ["evaluate"]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Resolved options of the command."""

    model: str
    tasks: str
    aspects: Path | None
    questions: list[Path]
    only: list[str]
    limit: int | None
    seed: int
    paraphrases: bool
    reader: str | None
    quantization: str | None
    early_exit_fraction: float | None
    batch_size: int
    max_batch_tokens: int
    max_length: int | None
    dimensions: int | None
    precision: str
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
    max_batch_tokens: MaxBatchTokensOption = 8192,
    max_length: MaxLengthOption = None,
    dimensions: DimensionsOption = None,
    precision: PrecisionOption = "float32",
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
        aspects=aspects,
        questions=questions or [],
        only=only or [],
        limit=limit,
        seed=seed,
        paraphrases=paraphrases,
        reader=reader,
        quantization=quantization,
        early_exit_fraction=early_exit_fraction,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        max_length=max_length,
        dimensions=dimensions,
        precision=precision,
        device=device,
        output=output,
    )
    if [bool(tasks), aspects is not None, bool(questions)].count(True) != 1:
        raise ConfigError("evaluate needs one of --tasks, --aspects and --questions. Give one of them.")
    check_output_file(output)
    score = _score_tasks if tasks else _score_aspects if aspects is not None else _score_questions
    record = score(options, report)
    if output is not None:
        write_json(output, record)
        report.print(f"written: {escape(str(output))}")
    for task_score in record.get("scores", ()):
        del task_score["details"]  # hundreds of numbers, which the results file contains
    report.result(record)


def _load_model(options: _Options) -> "tuple[LoadedEncoder, Encoder]":
    """Load the model, and return with it the encoder of vectors with the dimensions and precision of the options."""
    from promptembedder.batch import VectorFormat
    from promptembedder.model import PromptEmbedder, load_encoder

    vector_format = VectorFormat(dimensions=options.dimensions, precision=options.precision)
    loaded = load_encoder(
        options.model,
        reader=options.reader,
        quantization=options.quantization,
        early_exit_fraction=options.early_exit_fraction,
        device=options.device,
    )
    if options.max_length is not None:
        loaded.model.max_seq_length = options.max_length
    if isinstance(loaded.model, PromptEmbedder):
        loaded.model.max_batch_tokens = options.max_batch_tokens
    if vector_format == VectorFormat():
        return loaded, loaded.model
    vector_format.check(loaded.model.get_embedding_dimension() or options.dimensions or 8)
    return loaded, _ReducedEncoder(loaded.model, vector_format)


class _ReducedEncoder:
    """Encoder whose vectors are reduced as `embed` stores them, and returned as float32 of length 1 to be scored."""

    def __init__(self, model: "SentenceTransformer", vector_format: "VectorFormat") -> None:
        self._model, self._format = model, vector_format

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, inputs: list[str], **options: Any) -> "np.ndarray":
        return self._reduce(self._model.encode(inputs, **options))

    @property
    def encode_instructions(self) -> "Callable[..., np.ndarray]":
        """One pass for several instructions. An AttributeError tells that the model has no such pass."""
        encode = self._model.encode_instructions
        return lambda *arguments, **options: self._reduce(encode(*arguments, **options))

    def _reduce(self, vectors: Any) -> "np.ndarray":
        import numpy as np

        reduced = self._format.reduce(np.asarray(vectors, dtype=np.float32))
        if self._format.precision == "binary":
            bits = np.unpackbits((reduced.astype(np.int16) + 128).astype(np.uint8), axis=-1)
            reduced = 2 * bits.astype(np.float32) - 1
        lengths = np.linalg.norm(reduced.astype(np.float32), axis=-1, keepdims=True)
        return (reduced / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)


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


def _score_tasks(options: _Options, report: Report) -> dict[str, Any]:
    """Score the tasks, print the tables and return the record of a results file."""
    tasks = _load_tasks(options, report)
    loaded, encoder = _load_model(options)
    if options.paraphrases and not loaded.takes_instructions:
        report.print(f"{escape(options.model)} takes no instructions and is scored without paraphrases.")
    outcome = _score(encoder, tasks, options, takes_instructions=loaded.takes_instructions)
    report.print(_table(outcome, options))
    for steering in outcome.steering:
        report.print(_steering_table(steering))
    task_file = [Path(options.tasks)] if _is_file(options.tasks) else []
    files = [*task_file, *(file for task in tasks for file in task.files)]
    manifest = Path(options.model) / MANIFEST_NAME
    tokens = [score.tokens for score in outcome.scores]
    return {
        **_describe(loaded, options),
        "model_sha256": file_sha256(manifest) if manifest.is_file() else None,
        "mean": outcome.mean,
        "scores": [asdict(score) for score in outcome.scores],
        "steering": [{**asdict(steering), "gain": steering.gain} for steering in outcome.steering],
        "data_sha256": {str(file): file_sha256(file) for file in dict.fromkeys(files)},
        "seconds": outcome.seconds,
        "tokens": None if None in tokens else sum(token for token in tokens if token is not None),
    }


def _describe(loaded: "LoadedEncoder", options: _Options) -> dict[str, Any]:
    """Return the part of a record that does not depend on what is scored."""
    paths = {name: str(value) for name, value in vars(options).items() if isinstance(value, Path)}
    return {
        "model": options.model,
        "provenance": loaded.provenance,
        "takes_instructions": loaded.takes_instructions,
        "max_length": loaded.model.max_seq_length,
        "versions": versions(),
        "machine": {**describe_machine(), "device": str(loaded.model.device)},
        "options": {**asdict(options), **paths, "questions": list(map(str, options.questions))},
        "command": shlex.join(sys.argv),
    }


def _score(encoder: "Encoder", tasks: "Tasks", options: _Options, *, takes_instructions: bool) -> _Outcome:
    from promptembedder.evaluation import (
        HubTask,
        instruction_pairs,
        instruction_steering,
        paraphrases_of,
        score_tasks,
    )

    start = time.perf_counter()
    use_wordings = options.paraphrases and takes_instructions
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
                encoder,
                [task],
                takes_instructions=takes_instructions,
                batch_size=options.batch_size,
                wordings=wordings,
            )
            progress.advance(rows[task.name])
        for coarse, fine in pairs:
            progress.advance(0, note="steering")
            steering.append(instruction_steering(encoder, coarse, fine, batch_size=options.batch_size))
    return _Outcome(scores=scores, steering=steering, seconds=time.perf_counter() - start)


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


def _score_aspects(options: _Options, report: Report) -> dict[str, Any]:
    """Score the aspects of a file, print the table and return the record of a results file."""
    with gc_paused():  # seconds
        from promptembedder.evaluation.aspects import aspect_scores, read_aspects

    assert options.aspects is not None
    aspects = read_aspects(options.aspects, limit=options.limit)
    loaded, encoder = _load_model(options)
    scores = aspect_scores(
        encoder, aspects, takes_instructions=loaded.takes_instructions, batch_size=options.batch_size
    )
    report.print(_aspects_table(scores, title=f"{escape(options.model)} on {escape(options.aspects.name)}"))
    means = {kind: _means([score for score in scores if score.kind == kind]) for kind in _kinds(scores)}
    return {**_describe(loaded, options), "means": means, "aspects": [asdict(score) for score in scores]}


def _score_questions(options: _Options, report: Report) -> dict[str, Any]:
    """Score answer choice on each file, print the table and return the record of a results file."""
    with gc_paused():  # seconds
        from promptembedder.evaluation.aspects import answer_choice_score, read_questions

    files = {path.name.split(".")[0]: read_questions(path, limit=options.limit) for path in options.questions}
    loaded, encoder = _load_model(options)
    scores = [
        answer_choice_score(
            encoder,
            rows,
            name=name,
            takes_instructions=loaded.takes_instructions,
            batch_size=options.batch_size,
        )
        for name, rows in files.items()
    ]
    report.print(_questions_table(scores, title=f"{escape(options.model)}, answer choice"))
    return {**_describe(loaded, options), "questions": [{**asdict(score), "gain": score.gain} for score in scores]}


def _kinds(scores: "Sequence[AspectScore]") -> list[str]:
    return list(dict.fromkeys(score.kind for score in scores))


def _means(scores: "Sequence[AspectScore]") -> dict[str, float | None]:
    values = {
        "own": [score.own for score in scores],
        "others": [score.others for score in scores if score.others is not None],
        "unseen_wording": [score.unseen_wording for score in scores if score.unseen_wording is not None],
    }
    return {name: statistics.fmean(column) if column else None for name, column in values.items()}


def _aspects_table(scores: "Sequence[AspectScore]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("corpus", "attribute"):
        table.add_column(name, overflow="fold")
    for name in ("own", "others'", "unseen wording", "triplets"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in _kinds(scores):
        rows = [score for score in scores if score.kind == kind]
        for score in rows:
            shares = map(_number, (score.own, score.others, score.unseen_wording))
            table.add_row(escape(score.corpus), escape(score.attribute), *shares, str(score.triplets))
        shares = map(_number, _means(rows).values())
        table.add_row(f"mean, {escape(kind)}", "", *shares, "", style="bold", end_section=True)
    table.caption = "percent of conflict triplets; 50 ignores the instruction"
    return table


def _questions_table(scores: "Sequence[AnswerChoiceScore]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("file", overflow="fold")
    for column in ("right", "blind", "of the way", "questions"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        shares = map(_number, (score.accuracy, score.blind, score.gain))
        table.add_row(escape(score.name), *shares, str(score.questions))
    table.caption = "percent of questions whose own answer is nearest; blind: expected without reading the question"
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
