"""`python -m benchmarks quality`: quality of each method after equal steps and in equal time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from benchmarks.options import (
    BatchSizeOption,
    DtypeOption,
    HeldOutOption,
    LimitOption,
    MaxLengthOption,
    MixtureOption,
    OnlyOption,
    OutputOption,
    PrompterOption,
    RowsOption,
    TasksOption,
    WorkOption,
)
from promptembedder import extras
from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, parse_ints, split_commas

if TYPE_CHECKING:  # imported lazily, because these imports take seconds and `--help` needs none of them
    from benchmarks.quality.benchmark import QualityConfig

__all__ = ["quality"]

_METHODS = "promptembedder,promptembedder-hidden,static,static-shared,lora-3e-4,lora-1e-3,frozen-mean,frozen-prompteol"


def quality(
    mixture: MixtureOption,
    tasks: TasksOption,
    only: OnlyOption = None,
    readers: Annotated[str, typer.Option(help="Frozen LLMs, separated by commas.")] = "smollm2-135m",
    prompter: PrompterOption = "smollm2-135m",
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = _METHODS,
    timed: Annotated[
        str, typer.Option(help="Of these, the ones trained once more for as long as the first LoRA took.")
    ] = "promptembedder",
    seeds: Annotated[str, typer.Option(help="Separated by commas; each method is trained with each.")] = "0",
    steps: Annotated[int, typer.Option(help="Optimiser steps of every method.")] = 120,
    batch_size: BatchSizeOption = 24,
    max_length: MaxLengthOption = 128,
    rows: RowsOption = 4000,
    held_out: HeldOutOption = 50,
    limit: LimitOption = 200,
    curve_limit: Annotated[int, typer.Option(help="The same where scores are drawn over time.")] = 100,
    curve_points: Annotated[int, typer.Option(help="Times that a run is scored for that, its end included.")] = 3,
    dtype: DtypeOption = "auto",
    work: WorkOption = Path("runs/quality"),
    output: OutputOption = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the method, its variants, LoRA, static soft tokens and frozen pooling on the same data, batches and steps.

    If the command was interrupted, run it again to resume. Finished runs are loaded from the work folder.

    Example: python -m benchmarks quality --mixture mixture.json --tasks tasks.json --limit 50
    """
    report = Report(as_json)
    with one_line_errors():
        for module, extra in (("matplotlib", "bench"), ("psutil", "bench"), ("mteb", "eval")):
            extras.require(module, extra=extra)
        from benchmarks.quality.benchmark import QualityConfig

        bench_config = QualityConfig(
            mixture=str(mixture),
            tasks=str(tasks),
            only=tuple(only or ()),
            readers=tuple(split_commas(readers)),
            prompter=prompter,
            methods=tuple(split_commas(methods)),
            timed=tuple(split_commas(timed)),
            seeds=parse_ints("seeds", seeds),
            steps=steps,
            batch_size=batch_size,
            max_seq_length=max_length,
            rows=rows,
            held_out=held_out,
            limit=limit,
            curve_limit=curve_limit,
            curve_points=curve_points,
            dtype=dtype,
            work=str(work),
        )
        content, files = _measure(bench_config, output, report)
    _print(content, files, report)


def _measure(config: "QualityConfig", folder: Path, report: Report) -> tuple[dict[str, Any], list[Path]]:
    from benchmarks.quality.benchmark import bench_quality
    from benchmarks.quality.report import quality_content, quality_with_held, write_quality
    from benchmarks.result_content import provenance
    from promptembedder.cli.progress import training_progress

    runs = bench_quality(config, tell=report.print, callbacks=[training_progress()])
    content = quality_with_held(folder, quality_content(runs, provenance(config)))
    return content, [*write_quality(folder, content), *_draw(content, folder)]


def _draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw scores over time and by task, one pair of figures for each reader."""
    from promptembedder.plots import (
        QualityCurve,
        QualityPoint,
        TaskScorePoint,
        plot_quality_over_time,
        plot_task_scores,
    )

    files: list[Path] = []
    for reader in dict.fromkeys(run["reader"] for run in content["runs"]):
        runs = [run for run in content["runs"] if run["reader"] == reader]
        curves = [
            QualityCurve(method=_label(run), seed=run["seed"], points=tuple(_points(run, QualityPoint)))
            for run in runs
            if run["curve"]
        ]
        levels = {run["method"]: run["mean"] for run in runs if run["budget"] == "none"}
        scores = [
            TaskScorePoint(task=task, method=_label(run), score=score, seed=run["seed"])
            for run in runs
            for task, score in run["scores"].items()
        ]
        stem = reader.replace(":", "-").replace("/", "-")
        if curves:
            files += plot_quality_over_time(
                curves, folder / f"quality_over_time_{stem}", title=reader, references=levels
            )
        files += plot_task_scores(scores, folder / f"quality_by_task_{stem}", title=reader)
    return files


def _points(run: dict[str, Any], point: Any) -> list[Any]:
    return [
        point(step=one["step"], seconds=one["seconds"], score=sum(one["scores"].values()) / len(one["scores"]))
        for one in run["curve"]
    ]


def _label(run: dict[str, Any]) -> str:
    return f"{run['method']}, equal time" if run["budget"] == "seconds" else str(run["method"])


def _print(content: dict[str, Any], files: list[Path], report: Report) -> None:
    report.print(_table(content))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})


def _table(content: dict[str, Any]) -> Table:
    table = Table(title="mean over the tasks, 0..100", title_justify="left")
    for name in ("reader", "method", "budget"):
        table.add_column(name)
    for name in ("seed", "steps", "seconds", "mean"):
        table.add_column(name, justify="right")
    for run in sorted(content["runs"], key=lambda run: (run["reader"], -run["mean"])):
        table.add_row(
            run["reader"],
            run["method"],
            run["budget"],
            str(run["seed"]),
            str(run["steps"]),
            f"{run['seconds']:.0f}",
            f"{run['mean']:.1f}",
        )
    return table
