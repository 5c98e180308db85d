"""`promptembedder plot similarity` and `plot map`: texts under several instructions."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder import extras
from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import read_manifest

if TYPE_CHECKING:
    import numpy as np

__all__ = ["map_", "similarity"]

InstructionOption = Annotated[
    list[str] | None,
    # an environment variable would be split at spaces
    typer.Option(
        "--instruction", help="One panel each; by default the model's compiled ones.", allow_from_autoenv=False
    ),
]
TextColumnOption = Annotated[str | None, typer.Option(help="Column of the text; by default text, document, ...")]


def similarity(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    texts: Annotated[Path, typer.Argument(help="JSONL, CSV, TSV, Parquet or text file.")],
    instruction: InstructionOption = None,
    limit: Annotated[int, typer.Option(min=2, max=40, help="First texts of the file.")] = 12,
    text_column: TextColumnOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Path of the files without ending.")] = Path(
        "plots/similarity"
    ),
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """How alike the texts of a file are under each instruction, as heat maps on one scale.

    Example: promptembedder plot similarity runs/quickstart texts.txt --instruction "Topic" --instruction "Language"
    """
    report = Report(as_json)
    with one_line_errors():
        extras.require("matplotlib", extra="plots")
        from promptembedder.data import read_texts
        from promptembedder.plots import plot_similarity

        rows = [row.text for row, _ in zip(read_texts(texts, text_column=text_column), range(limit), strict=False)]
        if len(rows) < 2:
            raise DataError(f"{texts} holds {len(rows)} texts, a comparison needs 2. Give a longer file.")
        asked = _instructions(model, reader, instruction)
        files = plot_similarity(_vectors(model, reader, rows, asked), rows, asked, output)
    report.say(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], "texts": len(rows), "instructions": asked})


def map_(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    file: Annotated[Path, typer.Argument(help="JSONL, CSV, TSV or Parquet file with a column of labels.")],
    label_column: Annotated[str, typer.Option(help="Column of the label.")],
    instruction: InstructionOption = None,
    limit: Annotated[int, typer.Option(min=3, help="Texts, spread evenly over the file.")] = 200,
    labels: Annotated[int, typer.Option(min=1, max=24, help="The most frequent labels; other rows are left out.")] = 8,
    text_column: TextColumnOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Path of the files without ending.")] = Path(
        "plots/map"
    ),
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Labelled texts in the plane of their two main directions, one panel for each instruction.

    Example: promptembedder plot map runs/mine questions.jsonl --label-column label --instruction "Kind of the answer"
    """
    report = Report(as_json)
    with one_line_errors():
        extras.require("matplotlib", extra="plots")
        from promptembedder.plots import plot_map

        rows, left_out = _labelled(file, text_column, label_column, limit=limit, kinds=labels)
        asked = _instructions(model, reader, instruction)
        vectors = _vectors(model, reader, [text for text, _ in rows], asked)
        files = plot_map(vectors, [label for _, label in rows], asked, output)
    if left_out:
        report.say(f"{left_out} rows of rarer labels were left out; --labels takes more of them")
    report.say(f"written: {escape(', '.join(map(str, files)))}")
    content = {"files": [str(path) for path in files], "texts": len(rows), "left_out": left_out}
    report.result({**content, "instructions": asked})


def _labelled(
    file: Path, text_column: str | None, label_column: str, *, limit: int, kinds: int
) -> tuple[list[tuple[str, str]], int]:
    """Texts and labels of the most frequent kinds, `limit` of them evenly over the file; how many rows had others."""
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
    kept = [row for row in rows if row[1] in frequent]
    if len(kept) < 3:
        raise DataError(f"{file} holds {len(kept)} labelled texts, a map needs 3. Give a longer file.")
    step = max(len(kept) / limit, 1.0)
    return [kept[int(place * step)] for place in range(min(limit, len(kept)))], len(rows) - len(kept)


def _instructions(model: Path, reader: str | None, asked: list[str] | None) -> list[str]:
    """Those that were asked for, else the compiled ones, else the model's default."""
    from promptembedder.model import manifest_on, model_config

    manifest = manifest_on(read_manifest(model), reader, model)
    words = [text.strip() for text in asked or []]
    if not all(words):
        raise ConfigError("an instruction is blank. Say in words what the vectors are for.")
    return list(dict.fromkeys(words)) or list(manifest.instructions) or [model_config(manifest).default_instruction]


def _vectors(model: Path, reader: str | None, texts: list[str], instructions: list[str]) -> "np.ndarray":
    from promptembedder.model import PromptEmbedder, manifest_on

    compiled = set(instructions) <= set(manifest_on(read_manifest(model), reader, model).instructions)
    embedder = PromptEmbedder.from_pretrained(model, reader=reader, with_prompter=not compiled)
    return embedder.encode_instructions(texts, instructions)
