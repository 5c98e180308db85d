"""`promptembedder compare A B ... --tasks FILE`: several models side by side on your tasks."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, gc_paused
from promptembedder.cli.options import ConfigOption, DeviceOption, JsonOption, check_output_file
from promptembedder.cli.progress import ProgressDisplay
from promptembedder.errors import ConfigError
from promptembedder.storage import write_json

if TYPE_CHECKING:
    from promptembedder.evaluation import BM25, ComparedScore, EncoderSystem

__all__ = ["compare"]

_BM25 = "bm25"


def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="Saved models, frozen:POOLING:BACKBONE, any sentence-transformers models, and bm25."),
    ],
    tasks: Annotated[Path, typer.Option(help="Task file (.json).")],
    only: Annotated[list[str] | None, typer.Option(help="Name of a task to score. Repeatable. Default: all.")] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows scored per task. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of --limit, k-means and the bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per batch.")] = 64,
    device: DeviceOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results file (JSON).")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score several models on the same rows, with 95 % bootstrap intervals and rows per second.

    Classifiers are trained on all training rows. `evaluate` trains them on samples, as mteb does, so its scores differ.

    Example: promptembedder compare runs/mine frozen:mean:smollm2-135m bm25 --tasks tasks.json --limit 200
    """
    report = Report(as_json)
    if len(set(models)) < len(models):
        raise ConfigError("a model is named twice. Name each model once.")
    check_output_file(output)
    with gc_paused():  # seconds
        from promptembedder.evaluation import compare_on_task, read_tasks, subsample

    chosen = read_tasks(tasks, only=only or [])
    if limit is not None:
        chosen = [subsample(task, min(limit, task.rows), seed=seed) for task in chosen]
    if models == [_BM25] or (_BM25 in models and all(task.type != "retrieval" for task in chosen)):
        raise ConfigError("bm25 scores retrieval only, and there is nothing to compare it with. Name other models.")
    scores: dict[str, list[ComparedScore]] = {}
    rows = sum(task.rows_used + task.documents_used for task in chosen)
    with ProgressDisplay("rows", total=rows * len(models), measured=1) as progress:
        for name in models:
            progress.advance(0, note=name)
            system = _load(name, batch_size=batch_size, device=device)
            scores[name] = []
            for task in chosen:
                score = compare_on_task(system, task, seed=seed)
                scores[name] += [] if score is None else [score]
                progress.advance(task.rows_used + task.documents_used)
    content = {name: [asdict(score) for score in found] for name, found in scores.items()}
    report.print(_table(scores, [task.name for task in chosen]))
    if output is not None:
        write_json(output, content)
    report.result({"models": content})


def _load(name: str, *, batch_size: int, device: str | None) -> "EncoderSystem | BM25":
    from promptembedder.evaluation import BM25, EncoderSystem
    from promptembedder.model import load_encoder

    if name == _BM25:
        return BM25()
    loaded = load_encoder(name, device=device)
    return EncoderSystem(loaded.model, takes_instructions=loaded.takes_instructions, batch_size=batch_size)


def _table(scores: "dict[str, list[ComparedScore]]", tasks: list[str]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, title_justify="left")
    for name in ("task", "model"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", "rows/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in tasks:
        found = {name: score for name, own in scores.items() for score in own if score.task == task}
        best = max(score.score for score in found.values())
        for row, (name, score) in enumerate(found.items()):
            table.add_row(
                escape(f"{task} ({score.metric})") if row == 0 else "",
                escape(name),
                f"{score.score:.1f}",
                f"{score.low:.1f} to {score.high:.1f}",
                f"{score.texts / max(score.seconds, 1e-9):.3g}",
                style="bold" if score.score == best else None,
            )
        table.add_section()
    for row, (name, own) in enumerate(scores.items()):
        if len(own) == len(tasks):
            mean = statistics.fmean(score.score for score in own)
            table.add_row("mean" if row == 0 else "", escape(name), f"{mean:.1f}", "", "")
    return table
