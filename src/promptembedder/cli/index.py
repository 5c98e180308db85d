"""`promptembedder index SOURCE --table DIR`: build, extend and filter a table of vectors on disk."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, plural
from promptembedder.cli.options import (
    ConfigOption,
    IdColumnOption,
    JsonOption,
    ReaderOption,
    TextColumnOption,
    load_model,
    resolve_instruction,
)
from promptembedder.cli.progress import count_rows, row_progress
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.storage import check_writable

if TYPE_CHECKING:
    from promptembedder.model import PromptEmbedder
    from promptembedder.search import SearchReport, TableMetadata, VectorRows, VectorTable

__all__ = ["index"]

_CHUNK_ROWS = 64  # texts per call of `encode`, so that the estimate comes after the first minute on a slow machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """Rows to index, from the command's options."""

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
            raise ConfigError("--column selects existing vectors, but --model computes vectors. Omit one of them.")
        if self.model is None and self.id_column is not None:
            raise ConfigError(
                "--id-column needs --model: the ids of a file of vectors are in its column id. Omit --id-column."
            )
        if self.model is None and self.reader is not None:
            raise ConfigError("--reader needs --model: a file of vectors names its model. Omit --reader.")


def index(
    table: Annotated[Path, typer.Option(help="Folder of the table.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="Parquet file or folder of vectors from `embed`, or with --model a file of texts."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a saved model that embeds the texts.")] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="Instruction of the texts (default: the model's), or of the column of vectors to index."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the vectors if the file has several.")] = None,
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="Metadata column to filter by: NAME or NAME:TYPE with str, int, float or bool. Repeatable."),
    ] = None,
    reader: ReaderOption = None,
    add: Annotated[bool, typer.Option("--add", help="Add to an existing table.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing table.")] = False,
    delete: Annotated[str | None, typer.Option(help='Delete the rows that match: "year < 2000".')] = None,
    exact_below: Annotated[
        int | None,
        typer.Option(min=1, help="Number of rows from which a new table has an approximate index. Default: 10000."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Measure recall and time against exact search.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a table of vectors for `search --table`, add rows, delete rows, or measure its search.

    Without an id column, ids count rows from 0. Messages count rows from 1.

    Example: promptembedder index corpus.jsonl --table corpus-table --model runs/mine --metadata year:int
    """
    report = Report(as_json)
    _check_options(source, add=add, overwrite=overwrite, delete=delete, verify=verify, exact_below=exact_below)
    require("lancedb", extra="search")  # fail before the slow imports
    from promptembedder.search import VectorTable, measure_search

    start = time.perf_counter()
    added = deleted = 0
    if source is not None:
        request = _Source(
            path=source,
            model=model,
            reader=reader,
            instruction=instruction,
            column=column,
            text_column=text_column,
            id_column=id_column,
            metadata=metadata,
        )
        added = _add(request, table) if add else _create(request, table, exact_below=exact_below, overwrite=overwrite)
    opened = VectorTable(table)
    if delete is not None:
        deleted = opened.delete(delete)
    seconds = time.perf_counter() - start
    measured = measure_search(opened) if verify else None
    report.print(_summary(opened, added, deleted, seconds, measured))
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
        raise ConfigError("no rows to add. Give a SOURCE.")
    if source is None and delete is None and not verify:
        raise ConfigError("nothing to do. Give a SOURCE to index, --delete or --verify.")
    if source is not None and delete is not None:
        raise ConfigError("--delete does not accept a SOURCE. Delete first, then add.")
    if add and overwrite:
        raise ConfigError("--add keeps the existing rows and --overwrite drops them. Give one of the two.")
    if exact_below is not None and (add or source is None):
        raise ConfigError("--exact-below applies only to a new table. Omit it.")


def _create(request: _Source, folder: Path, *, exact_below: int | None, overwrite: bool) -> int:
    from promptembedder.search import EXACT_BELOW, check_target, create_table

    check_writable(folder)
    check_target(folder, overwrite=overwrite)
    with _rows(request) as rows:
        report = create_table(folder, rows, exact_below=exact_below or EXACT_BELOW, overwrite=overwrite)
    return report.rows


def _add(request: _Source, folder: Path) -> int:
    from promptembedder.search import VectorTable

    table = VectorTable(folder)
    with _rows(request, table) as rows:
        return table.add(rows)


@contextmanager
def _rows(request: _Source, table: "VectorTable | None" = None) -> "Iterator[VectorRows]":
    """Open the rows of the source, by default with the instruction and metadata columns of the target table."""
    from promptembedder.search import CorpusRows, holds_embeddings, open_embeddings

    if request.model is None:
        inherited = None if table is None or request.column is not None else table.table_metadata.instruction
        columns = None if table is None else list(table.metadata)
        yield open_embeddings(
            request.path,
            column=request.column,
            instruction=request.instruction or inherited,
            text_column=request.text_column,
            keep=request.metadata or columns,
        )
        return
    if holds_embeddings(request.path):
        raise DataError(f"{request.path} already contains vectors. Omit --model.")
    table_metadata, load = _build_loader(request, request.model, table)
    metadata = dict(_parse_column(word) for word in request.metadata or ())
    with row_progress(count_rows([request.path])) as on_rows:
        yield CorpusRows(
            path=request.path,
            load_encoder=load,
            table_metadata=table_metadata,
            metadata=metadata if table is None or metadata else table.metadata,
            text_column=request.text_column,
            id_column=request.id_column,
            chunk_rows=_CHUNK_ROWS,
            on_rows=on_rows,
        )


def _build_loader(
    request: _Source, model: Path, table: "VectorTable | None"
) -> "tuple[TableMetadata, Callable[[], PromptEmbedder]]":
    """Return the metadata of the vectors, checked against the table, and a function that loads the model."""
    from promptembedder.model import model_identity
    from promptembedder.search import TableMetadata

    given = (request.instruction or "").strip() or (table.table_metadata.instruction if table else None)
    instruction = resolve_instruction(given, "document", model, request.reader)
    identity = model_identity(model, reader=request.reader)
    name = str(model) if request.reader is None else f"{model} on {request.reader}"
    table_metadata = TableMetadata(
        model=name,
        model_sha256=identity.sha256,
        manifest_sha256=identity.manifest_sha256,
        reader=identity.reader,
        instruction=instruction,
    )
    if table is not None:
        table.table_metadata.check_model(table_metadata)
    return table_metadata, lambda: load_model(model, [instruction], reader=request.reader)


def _parse_column(word: str) -> tuple[str, str]:
    name, _, kind = word.partition(":")
    return name, kind or "str"


def _summary(table: "VectorTable", added: int, deleted: int, seconds: float, measured: "SearchReport | None") -> str:
    index_type = table.index_type or "none, search is exact"
    lines = [
        f"{plural(table.rows, 'row')} of {table.dim} dimensions in {escape(str(table.folder))}: "
        f"{added} added, {deleted} deleted, {seconds:.1f} s",
        f"  model: {escape(table.table_metadata.model)}",
        f"  instruction: {escape(table.table_metadata.instruction)}",
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
        **dataclasses.asdict(table.table_metadata),
        "metadata": table.metadata,
        "index": table.index_type,
        "seconds": seconds,
        "verify": None if measured is None else dataclasses.asdict(measured),
    }
