"""`promptembedder plot similarity` and `plot map`: plot texts under several instructions."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder import extras
from promptembedder.cli.console import Report, one_line_errors, plural
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import check_writable, read_manifest

if TYPE_CHECKING:
    import numpy as np

__all__ = ["map_", "similarity"]

InstructionOption = Annotated[
    list[str] | None,
    # an environment variable would be split at spaces
    typer.Option(
        "--instruction",
        help="Instruction, one panel each. Repeatable. Default: the compiled ones.",
        allow_from_autoenv=False,
    ),
]
TextColumnOption = Annotated[str | None, typer.Option(help="Column of the text. Default: text, document, ...")]


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
    with one_line_errors():
        extras.require("matplotlib", extra="plots")
        check_writable(output)
        from promptembedder.data import read_texts
        from promptembedder.plots import plot_similarity

        rows = [row.text for row, _ in zip(read_texts(texts, text_column=text_column), range(limit), strict=False)]
        if len(rows) < 2:
            raise DataError(f"{texts} contains fewer than 2 texts, a comparison needs 2. Give a longer file.")
        chosen = _instructions(model, reader, instruction)
        files = plot_similarity(_vectors(model, reader, rows, chosen), rows, chosen, output)
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], "texts": len(rows), "instructions": chosen})


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
    with one_line_errors():
        extras.require("matplotlib", extra="plots")
        check_writable(output)
        from promptembedder.plots import plot_map

        rows, left_out = _read_labelled(file, text_column, label_column, limit=limit, kinds=labels)
        chosen = _instructions(model, reader, instruction)
        vectors = _vectors(model, reader, [text for text, _ in rows], chosen)
        files = plot_map(vectors, [label for _, label in rows], chosen, output)
    if left_out:
        report.print(f"omitted: {plural(left_out, 'row')} of less frequent labels. Raise --labels to include them.")
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    content = {"files": [str(path) for path in files], "texts": len(rows), "left_out": left_out}
    report.result({**content, "instructions": chosen})


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


def _vectors(model: Path, reader: str | None, texts: list[str], instructions: list[str]) -> "np.ndarray":
    from promptembedder.model import PromptEmbedder, manifest_on

    compiled = set(instructions) <= set(manifest_on(read_manifest(model), reader, model).instructions)
    embedder = PromptEmbedder.from_pretrained(model, reader=reader, with_prompter=not compiled)
    return embedder.encode_instructions(texts, instructions)
