"""`promptembedder index SOURCE --table DIR`: vectors in a table on disk, to search, filter and change."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.instructions import asked_or_saved
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.cli.console import row_count
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.storage import MANIFEST_NAME, file_sha256, read_manifest

if TYPE_CHECKING:
    from promptembedder.model import PromptEmbedder
    from promptembedder.search import SearchReport, TableFacts, VectorRows, VectorTable

__all__ = ["index"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """What is to be indexed, as the options say."""

    path: Path
    model: Path | None
    reader: str | None
    instruction: str | None
    column: str | None
    text_column: str | None
    id_column: str | None
    metadata: Sequence[str] | None

    def __post_init__(self) -> None:
        if self.model is not None and self.column is not None:
            raise ConfigError("--column names vectors of a file that has them; with --model they are computed.")
        if self.model is None and self.id_column is not None:
            raise ConfigError("--id-column is for texts; vectors have their ids in the column id.")
        if self.model is None and self.reader is not None:
            raise ConfigError("--reader is for --model; vectors say themselves what made them.")


def index(
    table: Annotated[Path, typer.Option(help="Folder of the table.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="Parquet file or folder of vectors from `embed`; with --model a file of texts."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a saved model, to embed texts with.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Of texts: by default the model's own. Of vectors: which of several columns.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the vectors, if there are several.")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text; by default text, document, passage, ...")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Of texts: column of the id; by default id, _id or the row's number.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="Column to keep and filter by, NAME or NAME:TYPE with str, int, float or bool."),
    ] = None,
    reader: ReaderOption = None,
    add: Annotated[bool, typer.Option("--add", help="Add to a table that exists.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that exists.")] = False,
    delete: Annotated[str | None, typer.Option(help='Delete the rows that fit: "year < 2000".')] = None,
    exact_below: Annotated[
        int | None, typer.Option(min=1, help="Rows from which a new table gets an approximate index; by default 10000.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Measure recall and time against exact search.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a table of vectors that `search --table` looks in; add rows to it, delete some, measure its search.

    Example: promptembedder index corpus.jsonl --table corpus-table --model runs/mine --metadata year:int
    """
    report = Report(as_json)
    with one_line_errors():
        _check_options(source, add=add, overwrite=overwrite, delete=delete, verify=verify, exact_below=exact_below)
        require("lancedb", extra="search")  # before seconds of imports
        from promptembedder.search import VectorTable, measure_search

        start = time.perf_counter()
        added = deleted = 0
        if source is not None:
            asked = _Source(
                path=source,
                model=model,
                reader=reader,
                instruction=instruction,
                column=column,
                text_column=text_column,
                id_column=id_column,
                metadata=metadata,
            )
            added = _add(asked, table) if add else _create(asked, table, exact_below=exact_below, overwrite=overwrite)
        opened = VectorTable(table)
        if delete is not None:
            deleted = opened.delete(delete)
        seconds = time.perf_counter() - start
        measured = measure_search(opened) if verify else None
    report.say(_summary(opened, added, deleted, seconds, measured))
    report.result(_content(opened, added, deleted, seconds, measured))


def _check_options(
    source: Path | None,
    *,
    add: bool,
    overwrite: bool,
    delete: str | None,
    verify: bool,
    exact_below: int | None,
) -> None:
    if source is None and (add or overwrite):
        raise ConfigError("there is nothing to add. Name a SOURCE of rows.")
    if source is None and delete is None and not verify:
        raise ConfigError("there is nothing to do. Name a SOURCE to index, or say --delete or --verify.")
    if source is not None and delete is not None:
        raise ConfigError("--delete goes without a SOURCE. Delete first, then add.")
    if add and overwrite:
        raise ConfigError("--add keeps the rows that are there, --overwrite drops them. Say one of them.")
    if exact_below is not None and (add or source is None):
        raise ConfigError("--exact-below is settled when the table is made. Leave it out.")


def _create(asked: _Source, folder: Path, *, exact_below: int | None, overwrite: bool) -> int:
    from promptembedder.search import EXACT_BELOW, check_free, create_table

    check_free(folder, overwrite=overwrite)
    with _rows(asked) as rows:
        made = create_table(folder, rows, exact_below=exact_below or EXACT_BELOW, overwrite=overwrite)
    return made.rows


def _add(asked: _Source, folder: Path) -> int:
    from promptembedder.search import VectorTable

    table = VectorTable(folder)
    with _rows(asked, table) as rows:
        return table.add(rows)


@contextmanager
def _rows(asked: _Source, table: "VectorTable | None" = None) -> "Iterator[VectorRows]":
    """The rows of the source; by default under the instruction and with the metadata of the table they go to."""
    from promptembedder.search import CorpusRows, holds_embeddings, open_embeddings

    if asked.model is None:
        inherited = None if table is None or asked.column is not None else table.facts.instruction
        kept = None if table is None else list(table.metadata)
        yield open_embeddings(
            asked.path,
            column=asked.column,
            instruction=asked.instruction or inherited,
            text_column=asked.text_column,
            keep=asked.metadata or kept,
        )
        return
    if holds_embeddings(asked.path):
        raise DataError(f"{asked.path} holds vectors already. Leave out --model.")
    facts, load = _encoder(asked, asked.model, table)
    metadata = dict(_name_and_kind(word) for word in asked.metadata or ())
    with row_count() as on_rows:
        yield CorpusRows(
            path=asked.path,
            load_encoder=load,
            facts=facts,
            metadata=metadata if table is None or metadata else table.metadata,
            text_column=asked.text_column,
            id_column=asked.id_column,
            on_rows=on_rows,
        )


def _encoder(
    asked: _Source, model: Path, table: "VectorTable | None"
) -> "tuple[TableFacts, Callable[[], PromptEmbedder]]":
    """What the model is and reads texts under, checked against the table, and how to load it."""
    from promptembedder.model import PromptEmbedder, manifest_on, model_config
    from promptembedder.search import TableFacts

    manifest = manifest_on(read_manifest(model), asked.reader, model)
    source = str(manifest.backbones["reader"]["source"])
    sha256 = file_sha256(model / MANIFEST_NAME)
    name = str(model) if asked.reader is None else f"{model} on {asked.reader}"
    if table is not None:
        table.facts.check_model(name, sha256=sha256, reader=source)
    instruction = (asked.instruction or "").strip() or (
        asked_or_saved(None, "document", model) or model_config(manifest).default_instruction
        if table is None
        else table.facts.instruction
    )
    facts = TableFacts(model=name, model_sha256=sha256, reader=source, instruction=instruction)
    compiled = instruction in manifest.instructions
    return facts, lambda: PromptEmbedder.from_pretrained(model, reader=asked.reader, with_prompter=not compiled)


def _name_and_kind(word: str) -> tuple[str, str]:
    name, _, kind = word.partition(":")
    return name, kind or "str"


def _summary(table: "VectorTable", added: int, deleted: int, seconds: float, measured: "SearchReport | None") -> str:
    index_type = table.index_type or "none, each search compares all rows"
    lines = [
        f"{table.rows} rows of {table.dim} dimensions in {escape(str(table.folder))}: "
        f"{added} added, {deleted} deleted, {seconds:.1f} s",
        f"  model: {escape(table.facts.model)}",
        f"  instruction: {escape(table.facts.instruction)}",
        f"  approximate index: {index_type}",
    ]
    if table.metadata:
        lines.append(f"  metadata: {', '.join(f'{name} ({kind})' for name, kind in table.metadata.items())}")
    if measured is not None:
        lines.append(
            f"  recall@{measured.k} {measured.recall:.4f} against exact search, over {measured.queries} of its rows; "
            f"p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms (exact: p50 {measured.exact_p50_ms:.1f} ms)"
        )
    return "\n".join(lines)


def _content(
    table: "VectorTable", added: int, deleted: int, seconds: float, measured: "SearchReport | None"
) -> dict[str, Any]:
    return {
        "table": str(table.folder),
        "rows": table.rows,
        "added": added,
        "deleted": deleted,
        "dim": table.dim,
        **dataclasses.asdict(table.facts),
        "metadata": table.metadata,
        "index": table.index_type,
        "seconds": seconds,
        "verify": None if measured is None else dataclasses.asdict(measured),
    }
