"""`promptembedder plot ...`: plot runs, results and texts under several instructions, with their numbers as CSV."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from promptembedder import extras
from promptembedder.cli.console import Report, plural
from promptembedder.cli.options import Command, ConfigOption, JsonOption, ReaderOption, TextColumnOption, load_model
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import check_writable, read_manifest

__all__ = ["plot"]

_LEARNING_RATE = re.compile(r"-\d+(\.\d+)?e-?\d+$")  # suffix of a method trained with several learning rates

plot = typer.Typer(help="Plot runs, results and vectors: PNG, SVG and CSV.", no_args_is_help=True)

InstructionOption = Annotated[
    list[str] | None,
    # an environment variable would be split at spaces
    typer.Option(
        "--instruction",
        help="Instruction, one panel each. Repeatable. Default: the compiled ones.",
        allow_from_autoenv=False,
    ),
]


@plot.command(cls=Command)
def training(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of train or quickstart.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Path of the files without extension.")] = Path(
        "plots/training"
    ),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plot loss, evaluation and soft token statistics over the steps of one or several runs.

    Example: promptembedder plot training runs/quickstart -o plots/quickstart
    """
    report = Report(as_json)
    extras.require("matplotlib", extra="plots")
    check_writable(output)
    from promptembedder.plots import plot_training, read_run_log

    logs = [read_run_log(folder) for folder in runs]
    files = plot_training(logs, output, title=str(logs[0].name) if len(logs) == 1 else "")
    _report_files(report, files)


@plot.command(cls=Command)
def quality(
    results: Annotated[Path, typer.Argument(help="quality.json of python -m benchmarks quality.")],
    memory: Annotated[
        Path | None, typer.Option(help="efficiency.json of python -m benchmarks efficiency. Adds memory.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Path of the files without extension. The reader's name is appended.")
    ] = Path("plots/quality"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plot the scores of trained methods against training time and against the memory of a step.

    Example: promptembedder plot quality benchmarks/results/quality.json --memory benchmarks/results/efficiency.json
    """
    report = Report(as_json)
    extras.require("matplotlib", extra="plots")
    check_writable(output)
    content = _results(results, ("reader", "method", "budget", "seconds", "mean"), "quality")
    rows = [] if memory is None else _rows(memory, "rows", ("method", "reader", "peak_bytes"), "efficiency")
    files = []
    for reader in dict.fromkeys(run["reader"] for run in content["runs"]):
        files += _draw_cost(content, rows, reader, output)
    _report_files(report, files)


@plot.command(cls=Command)
def moves(
    results: Annotated[Path, typer.Argument(help="move.json of python -m benchmarks transfer.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the files.")] = Path("plots"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plot the scores of transferred and new models over steps and seconds, one figure per new reader.

    Example: promptembedder plot moves benchmarks/results/move.json -o plots
    """
    report = Report(as_json)
    extras.require("matplotlib", extra="plots")
    check_writable(output)
    content = _results(results, ("to", "method", "start", "steps", "seconds", "mean"), "transfer")
    from promptembedder.plots import plot_transfers
    from promptembedder.storage import write_csv

    files = plot_transfers(content, output)
    for target in dict.fromkeys(row["to"] for row in content["runs"]):
        table = output / f"move_to_{_file_name(target)}.csv"
        target_rows = [row for row in content["runs"] if row["to"] == target]
        write_csv(table, target_rows, ["from", "to", "method", "start", "steps", "seconds", "mean", "trained_bytes"])
        files.append(table)
    _report_files(report, files)


@plot.command(cls=Command)
def similarity(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    texts: Annotated[Path, typer.Argument(help="JSONL, CSV, TSV, Parquet or text file.")],
    instruction: InstructionOption = None,
    limit: Annotated[int, typer.Option(min=2, max=40, help="Number of texts, from the start of the file.")] = 12,
    text_column: TextColumnOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Path of the files without extension.")] = Path(
        "plots/similarity"
    ),
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plot the similarities of the texts of a file under each instruction, as heat maps on one scale.

    Example: promptembedder plot similarity runs/quickstart texts.txt --instruction "Topic" --instruction "Language"
    """
    report = Report(as_json)
    extras.require("matplotlib", extra="plots")
    check_writable(output)
    from promptembedder.data import read_texts
    from promptembedder.plots import plot_similarity

    rows = [row.text for row, _ in zip(read_texts(texts, text_column=text_column), range(limit), strict=False)]
    if len(rows) < 2:
        raise DataError(f"{texts} contains fewer than 2 texts, a comparison needs 2. Give a longer file.")
    chosen = _instructions(model, reader, instruction)
    files = plot_similarity(
        load_model(model, chosen, reader=reader).encode_instructions(rows, chosen), rows, chosen, output
    )
    _report_files(report, files, texts=len(rows), instructions=chosen)


@plot.command("map", cls=Command)
def map_(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    file: Annotated[Path, typer.Argument(help="JSONL, CSV, TSV or Parquet file with a column of labels.")],
    label_column: Annotated[str, typer.Option(help="Column of the label.")],
    instruction: InstructionOption = None,
    limit: Annotated[int, typer.Option(min=3, help="Maximum number of texts, evenly spaced over the file.")] = 200,
    labels: Annotated[
        int, typer.Option(min=1, max=24, help="Number of labels. Rows of less frequent labels are omitted.")
    ] = 8,
    text_column: TextColumnOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Path of the files without extension.")] = Path(
        "plots/map"
    ),
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plot labelled texts on their two principal components, one panel for each instruction.

    Example: promptembedder plot map runs/mine questions.jsonl --label-column label --instruction "Kind of the answer"
    """
    report = Report(as_json)
    extras.require("matplotlib", extra="plots")
    check_writable(output)
    from promptembedder.plots import plot_map

    rows, left_out = _read_labelled(file, text_column, label_column, limit=limit, kinds=labels)
    chosen = _instructions(model, reader, instruction)
    vectors = load_model(model, chosen, reader=reader).encode_instructions([text for text, _ in rows], chosen)
    files = plot_map(vectors, [label for _, label in rows], chosen, output)
    if left_out:
        report.print(f"omitted: {plural(left_out, 'row')} of less frequent labels. Raise --labels to include them.")
    _report_files(report, files, texts=len(rows), left_out=left_out, instructions=chosen)


def _draw_cost(content: Mapping[str, Any], memory: list[dict[str, Any]], reader: str, stem: Path) -> list[Path]:
    from promptembedder.plots import CostPoint, plot_score_against_cost

    target_rows = [row for row in memory if row["reader"] == reader and row["peak_bytes"]]
    # the largest measured batch at the length nearest to that of the training
    length = content.get("settings", {}).get("max_seq_length", 0)
    shapes = sorted(
        {(row.get("length", 0), row.get("batch", 0)) for row in target_rows}, key=lambda s: (abs(s[0] - length), -s[1])
    )
    peaks = {
        row["method"]: row["peak_bytes"]
        for row in target_rows
        if shapes[:1] == [(row.get("length", 0), row.get("batch", 0))]
    }
    points = [
        CostPoint(
            method=f"{run['method']}, equal time" if run["budget"] == "seconds" else run["method"],
            score=run["mean"],
            seconds=0.0 if run["budget"] == "none" else run["seconds"],
            peak_bytes=peaks.get(_LEARNING_RATE.sub("", run["method"])),
            seed=run.get("seed", 0),
        )
        for run in content["runs"]
        if run["reader"] == reader
    ]
    label = f"peak memory of a step [GiB]\n(batch {shapes[0][1]}, {shapes[0][0]} tokens)" if shapes else ""
    path = stem.with_name(f"{stem.name}_{_file_name(reader)}")
    return plot_score_against_cost(points, path, title=reader, memory_label=label)


def _results(path: Path, columns: tuple[str, ...], command: str) -> dict[str, Any]:
    return {**_content(path, command), "runs": _rows(path, "runs", columns, command)}


def _rows(path: Path, key: str, columns: tuple[str, ...], command: str) -> list[dict[str, Any]]:
    rows = _content(path, command).get(key)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} contains no {key}. Give the .json written by python -m benchmarks {command}.")
    # rows that ran out of memory have no numbers
    missing = [name for name in columns if not any(name in row for row in rows)]
    if missing:
        raise DataError(f"{path} contains no {missing[0]!r}. Give the .json written by python -m benchmarks {command}.")
    return [row for row in rows if all(name in row for name in columns)]


def _content(path: Path, command: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"cannot read {path} ({reason}). Give the .json written by python -m benchmarks {command}."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} contains no results. Give the .json written by python -m benchmarks {command}.")
    return content


def _file_name(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")


def _report_files(report: Report, files: list[Path], **content: Any) -> None:
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})


def _read_labelled(
    file: Path, text_column: str | None, label_column: str, *, limit: int, kinds: int
) -> tuple[list[tuple[str, str]], int]:
    """Return up to `limit` evenly spaced texts of the most frequent labels, and the number of omitted rows."""
    from promptembedder.data import TextColumns, read_rows

    rows: list[tuple[str, str]] = []
    columns: TextColumns | None = None
    for index, row in enumerate(read_rows(file)):
        place = f"{file}, row {index + 1}"
        columns = columns or TextColumns.chosen(row, text_column=text_column, id_column=None, place=place)
        label = row.get(label_column)
        if label is None or isinstance(label, dict | list):
            raise DataError(
                f"{place} has no label in column {label_column!r}: found {', '.join(map(str, row))}. "
                "Name the column with --label-column."
            )
        rows.append((columns.row(row, index=index, place=place).text, str(label)))
    frequent = {label for label, _ in Counter(label for _, label in rows).most_common(kinds)}
    selected = [row for row in rows if row[1] in frequent]
    if len(selected) < 3:
        raise DataError(f"{file} contains fewer than 3 labelled texts, a map needs 3. Give a longer file.")
    step = max(len(selected) / limit, 1.0)
    return [selected[int(position * step)] for position in range(min(limit, len(selected)))], len(rows) - len(selected)


def _instructions(model: Path, reader: str | None, given: list[str] | None) -> list[str]:
    """Return the given instructions, else the compiled ones, else the model's default."""
    from promptembedder.model import manifest_on, model_config

    manifest = manifest_on(read_manifest(model), reader, model)
    texts = [text.strip() for text in given or []]
    if not all(texts):
        raise ConfigError("an instruction is blank. Describe in words what the vectors are for.")
    return list(dict.fromkeys(texts)) or list(manifest.instructions) or [model_config(manifest).default_instruction]
