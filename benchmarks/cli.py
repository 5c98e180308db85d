"""`python -m benchmarks ...`: measurements behind the documented claims, each with the command that repeats it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.corpus.command import corpus
from benchmarks.faults.command import reliability
from benchmarks.quality.command import quality
from benchmarks.report import report as rewrite_tables
from benchmarks.serving.command import serve
from benchmarks.speed.command import speed
from benchmarks.steering.command import steering
from benchmarks.transfer.command import transfer
from promptembedder import extras
from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, parse_ints, split_commas

if TYPE_CHECKING:  # imported lazily, because these imports take seconds and `--help` needs none of them
    from benchmarks.efficiency.benchmark import EfficiencyProgress
    from benchmarks.efficiency.results import EfficiencyResult

__all__ = ["bench"]

_GIB = 1 << 30

bench = typer.Typer(
    help="Measure, side by side with what the method is compared with.\n\nExample: python -m benchmarks speed",
    no_args_is_help=True,
)
bench.command()(quality)
bench.command()(steering)
bench.command()(transfer)
bench.command()(speed)
bench.command()(serve)
bench.command()(corpus)
bench.command()(reliability)
bench.command("report")(rewrite_tables)


@bench.command()
def efficiency(
    reader: Annotated[str, typer.Option(help="The frozen LLM, such as random:llama-7b.")] = "smollm2-135m",
    prompter: Annotated[
        str | None, typer.Option(help="By default SmolLM2-135M; random: too where the reader is.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Separated by commas; by default all.")] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a text, separated by commas.")] = "32,128,512",
    batches: Annotated[str, typer.Option(help="Pairs of a step, separated by commas.")] = "8,16,32,64,128",
    memory_gib: Annotated[
        float | None, typer.Option(help="Memory that a process may take; by default what is free.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the reader: auto, float32, bfloat16.")] = "auto",
    repeats: Annotated[int, typer.Option(help="Times each step is timed.")] = 5,
    search_largest: Annotated[
        bool, typer.Option("--search-largest", help="Try which is the largest batch that fits, not only estimate it.")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("benchmarks/results"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure anew what the folder holds.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure time and memory of a training step against LoRA, checkpointing, full training and static soft tokens.

    If the command was interrupted, run it again to resume.

    Example: python -m benchmarks efficiency --lengths 32,128 --batches 8,16
    """
    report = Report(as_json)
    with one_line_errors():
        for module in ("matplotlib", "psutil"):  # fail before the measurement if a module is missing
            extras.require(module, extra="bench")
        numbers = {"lengths": parse_ints("lengths", lengths), "batches": parse_ints("batches", batches)}
        from benchmarks.efficiency.benchmark import run_efficiency
        from benchmarks.efficiency.config import EfficiencyConfig
        from benchmarks.efficiency.methods import METHODS
        from benchmarks.efficiency.results import write_efficiency

        bench_config = EfficiencyConfig(
            reader=reader,
            prompter=prompter,
            methods=tuple(METHODS) if methods is None else tuple(split_commas(methods)),
            **numbers,
            memory_gib=memory_gib,
            device=device or _default_device(),
            dtype=dtype,
            repeats=repeats,
            search_largest=search_largest,
        )
        with _progress() as on_progress:
            result = run_efficiency(bench_config, output, overwrite=overwrite, on_progress=on_progress)
        files = [*write_efficiency(result, output), *_draw(result, output)]
    report.print(_table(result))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **result.content()})


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _progress() -> Iterator[Callable[["EfficiencyProgress"], None]]:
    """Show the number of finished rows and the current measurement on stderr."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        yield lambda now: progress.update(bar, total=now.rows, completed=now.done, description=escape(now.doing))


def _draw(result: "EfficiencyResult", folder: Path) -> list[Path]:
    from promptembedder.plots import StepPoint, plot_memory, plot_step_time

    points = [
        StepPoint(
            method=row["method"],
            length=row["length"],
            batch=row["batch"],
            seconds=row.get("step_seconds"),
            activation_bytes=row.get("activation_bytes"),
            peak_bytes=row.get("peak_bytes"),
        )
        for row in result.rows
    ]
    title = f"{result.settings['reader']}, {result.settings['dtype']}, {_machine_words(result.machine)}"
    return [
        *plot_step_time(points, folder / "efficiency_step_time", title=title),
        *plot_memory(points, folder / "efficiency_memory", title=title),
    ]


def _machine_words(machine: dict[str, Any]) -> str:
    if machine["gpu"] is not None:
        return str(machine["gpu"])
    return f"{machine['cores']} CPU core{'s' if machine['cores'] > 1 else ''}"


def _table(result: "EfficiencyResult") -> Table:
    table = Table(title=f"a training step of {escape(result.settings['reader'])}", title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("tokens", "batch", "step [s]", "x", "act. [GiB]", "x", "peak [GiB]"):
        table.add_column(name, justify="right")
    ratios = {(row["method"], row["length"], row["batch"]): row for row in result.ratios}
    cell: tuple[int, int] | None = None
    for row in result.rows:
        if cell not in (None, (row["length"], row["batch"])):
            table.add_section()
        cell = row["length"], row["batch"]
        place = [row["method"], str(row["length"]), str(row["batch"])]
        if "error" in row:
            table.add_row(*place, escape(row["error"]))
            continue
        ratio = ratios.get((row["method"], *cell), {})
        factors = [ratio.get(name) for name in ("step_seconds", "activation_bytes")]
        times, memories = ["" if factor is None else f"{factor:.2f}" for factor in factors]
        sizes = [f"{row[name] / _GIB:.3f}" for name in ("activation_bytes", "peak_bytes")]
        table.add_row(*place, f"{row['step_seconds']:.3g}", times, sizes[0], memories, sizes[1])
    table.caption = "act.: activations; x: over promptembedder at the same length and batch"
    return table
