"""`python -m benchmarks transfer`: training steps that a transferred model needs to match a native one."""

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
from promptembedder.errors import ConfigError

if TYPE_CHECKING:  # imported lazily, because these imports take seconds and `--help` needs none of them
    from benchmarks.transfer.benchmark import MoveBenchConfig

__all__ = ["transfer"]

_ROUTES = "smollm2-135m>gemma3-270m,gemma3-270m>smollm2-135m"


def transfer(
    mixture: MixtureOption,
    tasks: TasksOption,
    only: OnlyOption = None,
    routes: Annotated[str, typer.Option(help="FROM>TO, separated by commas.")] = _ROUTES,
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
    """Score transferred models, random alignments, the method from scratch and LoRA from scratch over training steps.

    If the command was interrupted, run it again to resume. Finished runs are loaded from the work folder.

    Example: python -m benchmarks transfer --mixture mixture.json --tasks tasks.json --limit 50
    """
    report = Report(as_json)
    with one_line_errors():
        for module, extra in (("matplotlib", "bench"), ("psutil", "bench"), ("mteb", "eval")):
            extras.require(module, extra=extra)
        from benchmarks.transfer.benchmark import MoveBenchConfig

        bench_config = MoveBenchConfig(
            mixture=str(mixture),
            tasks=str(tasks),
            only=tuple(only or ()),
            routes=tuple(_route(text) for text in split_commas(routes)),
            prompter=prompter,
            starts=tuple(split_commas(starts)),
            native=tuple(split_commas(native)),
            source_steps=source_steps,
            points=parse_ints("points", points),
            batch_size=batch_size,
            max_seq_length=max_length,
            rows=rows,
            held_out=held_out,
            limit=limit,
            dtype=dtype,
            seed=seed,
            work=str(work),
        )
        content, files = _measure(bench_config, output, report)
    _print(content, files, report)


def _route(text: str) -> tuple[str, str]:
    source, arrow, target = text.partition(">")
    if not (source.strip() and arrow and target.strip()):
        raise ConfigError(f"a route is FROM>TO, got {text!r}. Try smollm2-135m>gemma3-270m.")
    return source.strip(), target.strip()


def _measure(config: "MoveBenchConfig", folder: Path, report: Report) -> tuple[dict[str, Any], list[Path]]:
    from benchmarks.result_content import provenance
    from benchmarks.transfer.benchmark import bench_move
    from benchmarks.transfer.report import merge_results, move_content, write_move
    from promptembedder.cli.progress import training_progress
    from promptembedder.plots import plot_transfers

    runs = bench_move(config, tell=report.print, callbacks=[training_progress()])
    content = merge_results(folder, move_content(runs, provenance(config)))
    return content, [*write_move(folder, content), *plot_transfers(content, folder)]


def _print(content: dict[str, Any], files: list[Path], report: Report) -> None:
    report.print(_table(content))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})


def _table(content: dict[str, Any]) -> Table:
    from promptembedder.plots import transfer_label

    table = Table(title="mean over the tasks, 0..100", title_justify="left")
    for name in ("to", "method"):
        table.add_column(name)
    for name in ("steps", "mean", "seconds"):
        table.add_column(name, justify="right")
    for row in content["runs"]:
        table.add_row(row["to"], transfer_label(row), str(row["steps"]), f"{row['mean']:.1f}", f"{row['seconds']:.0f}")
    return table
