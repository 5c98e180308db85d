"""`promptembedder bench move`: how soon a moved model is as good as one trained on the new reader."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder import extras
from benchmarks.options import BatchSizeOption, DtypeOption, HeldOutOption, LimitOption, MaxLengthOption, MixtureOption, OnlyOption, OutputOption, PrompterOption, RowsOption, TasksOption, WorkOption
from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, whole_numbers, words
from promptembedder.errors import ConfigError

if TYPE_CHECKING:  # importing these takes seconds, and `--help` needs none of them
    from benchmarks.transfer.benchmark import MoveBenchConfig

__all__ = ["draw_moves", "move"]


def move(
    mixture: MixtureOption,
    tasks: TasksOption,
    only: OnlyOption = None,
    routes: Annotated[
        str, typer.Option(help="FROM>TO, separated by commas.")
    ] = "smollm2-135m>gemma3-270m,gemma3-270m>smollm2-135m",
    prompter: PrompterOption = "smollm2-135m",
    starts: Annotated[
        str, typer.Option(help="Of the moved alignment: ridge, procrustes, vocabulary, fresh, random.")
    ] = "ridge,random",
    native: Annotated[
        str, typer.Option(help="Methods trained on the new reader from scratch.")
    ] = "promptembedder,lora-1e-3",
    source_steps: Annotated[int, typer.Option(help="Steps of the model that is moved.")] = 200,
    points: Annotated[str, typer.Option(help="Steps after which everything is scored.")] = "0,10,25,50,100,200",
    batch_size: BatchSizeOption = 24,
    max_length: MaxLengthOption = 128,
    rows: RowsOption = 4000,
    held_out: HeldOutOption = 50,
    limit: LimitOption = 100,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Seed of data order and drawn starts.")] = 0,
    work: WorkOption = Path("runs/move"),
    output: OutputOption = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Scores over steps of moved models, random alignments, the method from scratch and LoRA from scratch.

    Stopped at any moment, the same command goes on where it was; finished runs are read from the work folder.

    Example: promptembedder bench move --mixture mixture.json --tasks tasks.json --limit 50
    """
    report = Report(as_json)
    with one_line_errors():
        for module, extra in (("matplotlib", "bench"), ("psutil", "bench"), ("mteb", "eval")):
            extras.require(module, extra=extra)
        from benchmarks.transfer.benchmark import MoveBenchConfig

        settings = MoveBenchConfig(
            mixture=str(mixture),
            tasks=str(tasks),
            only=tuple(only or ()),
            routes=tuple(_route(text) for text in words(routes)),
            prompter=prompter,
            starts=tuple(words(starts)),
            native=tuple(words(native)),
            source_steps=source_steps,
            points=whole_numbers("points", points),
            batch_size=batch_size,
            max_seq_length=max_length,
            rows=rows,
            held_out=held_out,
            limit=limit,
            dtype=dtype,
            seed=seed,
            work=str(work),
        )
        content, files = _measure(settings, output, report)
    report.say(_table(content))
    report.say(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})


def _route(text: str) -> tuple[str, str]:
    source, arrow, target = text.partition(">")
    if not (source.strip() and arrow and target.strip()):
        raise ConfigError(f"a route is FROM>TO, got {text!r}. Try smollm2-135m>gemma3-270m.")
    return source.strip(), target.strip()


def _measure(settings: "MoveBenchConfig", folder: Path, report: Report) -> tuple[dict[str, Any], list[Path]]:
    from benchmarks.transfer.benchmark import bench_move
    from benchmarks.transfer.report import move_content, move_with_held, write_move
    from benchmarks.result_content import provenance
    from promptembedder.cli.console import TrainingBar

    runs = bench_move(settings, tell=report.say, callbacks=[TrainingBar()])
    content = move_with_held(folder, move_content(runs, provenance(settings)))
    return content, [*write_move(folder, content), *draw_moves(content, folder)]


def draw_moves(content: dict[str, Any], folder: Path) -> list[Path]:
    """The mean of the tasks over steps, one pair of pictures for each new reader."""
    from benchmarks.transfer.report import move_label
    from promptembedder.plots import QualityCurve, QualityPoint, plot_quality_over_time

    files: list[Path] = []
    for target in dict.fromkeys(row["to"] for row in content["runs"]):
        by_label: dict[str, list[QualityPoint]] = {}
        for row in content["runs"]:
            if row["to"] == target:
                point = QualityPoint(step=row["steps"], seconds=row["seconds"], score=row["mean"])
                by_label.setdefault(move_label(row), []).append(point)
        curves = [QualityCurve(method=label, points=tuple(points)) for label, points in by_label.items()]
        stem = folder / f"move_to_{target.replace(':', '-').replace('/', '-')}"
        files += plot_quality_over_time(curves, stem, title=f"to {target}")
    return files


def _table(content: dict[str, Any]) -> Table:
    from benchmarks.transfer.report import move_label

    table = Table(title="mean over the tasks, 0..100", title_justify="left")
    for name in ("to", "method"):
        table.add_column(name)
    for name in ("steps", "mean", "seconds"):
        table.add_column(name, justify="right")
    for row in content["runs"]:
        table.add_row(row["to"], move_label(row), str(row["steps"]), f"{row['mean']:.1f}", f"{row['seconds']:.0f}")
    return table
