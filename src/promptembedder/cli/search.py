"""`promptembedder search MODEL QUERY`: nearest texts in a file (`--corpus`) or a table (`--table`)."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from promptembedder.cli.console import Report, gc_paused, plural
from promptembedder.cli.options import (
    ConfigOption,
    IdColumnOption,
    JsonOption,
    ReaderOption,
    TextColumnOption,
    load_model,
    resolve_instruction,
)
from promptembedder.cli.progress import row_progress
from promptembedder.errors import ConfigError
from promptembedder.storage import read_manifest

if TYPE_CHECKING:
    from promptembedder.search import Hit, TableHit

__all__ = ["search"]

_SHOWN_CHARACTERS = 300


def search(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    query: Annotated[str, typer.Argument(help="Text to search with.")],
    corpus: Annotated[
        Path | None, typer.Option(help="JSONL, CSV, TSV, Parquet or text file to search. It is embedded on every call.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Table to search, built by `index` with this model.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of hits.")] = 5,
    where: Annotated[
        str | None, typer.Option(help="Filter of the rows of a table: \"year >= 2000 AND lang = 'en'\".")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction for the query. Default: the model's.")] = None,
    document_instruction: Annotated[
        str | None, typer.Option(help="Instruction for the texts of a file. Default: the model's.")
    ] = None,
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search a file in memory, exactly, or a table on disk built by `index`.

    Example: promptembedder search runs/mine "a question" --corpus corpus.jsonl
    """
    report = Report(as_json)
    read_manifest(model)
    if not query.strip():
        raise ConfigError("the query is blank. Give a text to search with.")
    request = _Query(model=model, reader=reader, text=query, instruction=instruction, k=k)
    if corpus is not None and table is None:
        if where is not None:
            raise ConfigError("--where needs --table: a file has no metadata. Build a table with `index`.")
        answer = _search_in_file(request, corpus, document_instruction, text_column, id_column)
    elif table is not None and corpus is None:
        if document_instruction or text_column or id_column:
            raise ConfigError("a table has a fixed instruction and fixed columns. Omit these options, or use --corpus.")
        answer = _search_in_table(request, table, where)
    else:
        raise ConfigError("nothing to search. Give either --corpus FILE or --table DIR.")
    if not answer.hits:
        report.print("no row fits the filter" if where is not None else "no hits")
    else:
        report.print(
            _table(
                answer.hits,
                title=f"{plural(answer.documents, 'text')}, {answer.seconds:.3g} s",
            )
        )
    report.result(
        {
            "query": query,
            "instruction": answer.instruction,
            "documents": answer.documents,
            "hits": [dataclasses.asdict(hit) for hit in answer.hits],
            "seconds": answer.seconds,
        }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Query:
    """Query of one search and the model that embeds it."""

    model: Path
    reader: str | None
    text: str
    instruction: str | None
    k: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SearchResult:
    """Hits with the query's instruction, the number of searched texts and the time in seconds."""

    hits: "Sequence[Hit | TableHit]"
    instruction: str
    documents: int
    seconds: float


def _search_in_file(
    request: _Query, corpus: Path, document_instruction: str | None, text_column: str | None, id_column: str | None
) -> _SearchResult:
    with gc_paused():  # seconds
        from promptembedder.data import read_texts
        from promptembedder.search import build_index

    rows = list(read_texts(corpus, text_column=text_column, id_column=id_column))
    query_prompt = resolve_instruction(request.instruction, "query", request.model, request.reader)
    document_prompt = resolve_instruction(document_instruction, "document", request.model, request.reader)
    embedder = load_model(request.model, [query_prompt, document_prompt], reader=request.reader)
    start = time.perf_counter()
    with row_progress(len(rows)) as on_rows:
        index = build_index(embedder, rows, prompt=document_prompt, on_rows=on_rows)
    vector = embedder.encode([request.text], prompt=query_prompt, show_progress_bar=False)[0]
    hits = index.search(vector, k=request.k)
    seconds = time.perf_counter() - start
    return _SearchResult(hits=hits, instruction=query_prompt, documents=len(rows), seconds=seconds)


def _search_in_table(request: _Query, folder: Path, where: str | None) -> _SearchResult:
    with gc_paused():
        from promptembedder.model import model_identity
        from promptembedder.search import TableMetadata, VectorTable

    table = VectorTable(folder)
    identity = model_identity(request.model, reader=request.reader)
    table.table_metadata.check_model(
        TableMetadata(
            model=str(request.model),
            model_sha256=identity.sha256,
            manifest_sha256=identity.manifest_sha256,
            reader=identity.reader,
            instruction=table.table_metadata.instruction,
        )
    )
    table.check_filter(where)
    prompt = resolve_instruction(request.instruction, "query", request.model, request.reader)
    embedder = load_model(request.model, [prompt], reader=request.reader)
    start = time.perf_counter()
    # a table of vectors with fewer dimensions (embed --dimensions) needs such a query
    vector = embedder.encode(
        [request.text], prompt=prompt, show_progress_bar=False, truncate_dim=table.dim, normalize_embeddings=True
    )[0]
    hits = table.search(vector, k=request.k, where=where)
    seconds = time.perf_counter() - start
    return _SearchResult(hits=hits, instruction=prompt, documents=table.rows, seconds=seconds)


def _table(hits: "Sequence[Hit | TableHit]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    # rich shrinks wrappable columns first, so that a narrow terminal folds the text and keeps the numbers
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", overflow="fold", max_width=24)
    table.add_column("text", overflow="fold", ratio=1)
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(_one_line(hit.id)), Text(_one_line(hit.text or "")))
    return table


def _one_line(text: str) -> str:
    """Replace line breaks and control characters, which a terminal would interpret, by spaces."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[:_SHOWN_CHARACTERS]).split())
