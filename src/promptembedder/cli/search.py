"""`promptembedder search MODEL QUERY`: what is nearest to a query, in a file (`--corpus`) or a table (`--table`)."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from promptembedder.cli.console import Report, err, importing, one_line_errors
from promptembedder.cli.instructions import asked_or_saved
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, file_sha256, read_manifest

if TYPE_CHECKING:
    from promptembedder.search import Hit, TableHit

__all__ = ["search"]

_SHOWN_CHARACTERS = 300  # more than a line of any terminal


def search(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    corpus: Annotated[
        Path | None, typer.Option(help="JSONL, CSV, TSV, Parquet or text file to look in, embedded anew each time.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Table to look in, which `index` made with this model.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits to show.")] = 5,
    where: Annotated[
        str | None, typer.Option(help="Of a table, the rows to look at: \"year >= 2000 AND lang = 'en'\".")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="For the query; by default the model's own.")] = None,
    document_instruction: Annotated[
        str | None, typer.Option(help="For the texts of a file; by default the model's own.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text; by default text, document, passage, ...")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the id; by default id, _id or the row's number.")
    ] = None,
    reader: ReaderOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search a file, in memory and exactly, or a table on disk that `index` made.

    Example: promptembedder search runs/mine "a question" --corpus corpus.jsonl
    """
    report = Report(as_json)
    with one_line_errors():
        read_manifest(model)
        if not query.strip():
            raise ConfigError("the query is blank. Say what to look for.")
        asked = _Query(model=model, reader=reader, text=query, instruction=instruction, k=k)
        if corpus is not None and table is None:
            if where is not None:
                raise ConfigError("--where is for --table: a file has no metadata. Make a table with `index`.")
            found = _in_file(asked, corpus, document_instruction, text_column, id_column)
        elif table is not None and corpus is None:
            if document_instruction or text_column or id_column:
                raise ConfigError("a table has its instruction and columns. Leave out those options, or name --corpus.")
            found = _in_table(asked, table, where)
        else:
            raise ConfigError("name what to look in: either --corpus FILE or --table DIR.")
    report.say(_table(found.hits, title=f"{found.documents} texts, {found.seconds:.3g} s"))
    report.result(
        {
            "query": query,
            "instruction": found.instruction,
            "documents": found.documents,
            "hits": [dataclasses.asdict(hit) for hit in found.hits],
            "seconds": found.seconds,
        }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Query:
    """What is asked for, and of which model."""

    model: Path
    reader: str | None
    text: str
    instruction: str | None
    k: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """What was found, under which instruction for the query, among how many texts, in what time."""

    hits: "Sequence[Hit | TableHit]"
    instruction: str
    documents: int
    seconds: float


def _in_file(
    asked: _Query, corpus: Path, document_instruction: str | None, text_column: str | None, id_column: str | None
) -> _Found:
    with importing():  # seconds
        from promptembedder.data import read_texts
        from promptembedder.model import PromptEmbedder, manifest_on, model_config
        from promptembedder.search import build_index

    rows = list(read_texts(corpus, text_column=text_column, id_column=id_column))
    manifest = manifest_on(read_manifest(asked.model), asked.reader, asked.model)
    default = model_config(manifest).default_instruction
    query_prompt = asked_or_saved(asked.instruction, "query", asked.model) or default
    document_prompt = asked_or_saved(document_instruction, "document", asked.model) or default
    compiled = {query_prompt, document_prompt} <= set(manifest.instructions)
    embedder = PromptEmbedder.from_pretrained(asked.model, reader=asked.reader, with_prompter=not compiled)
    start = time.perf_counter()
    with _progress(len(rows)) as on_rows:
        index = build_index(embedder, rows, prompt=document_prompt, on_rows=on_rows)
    vector = embedder.encode([asked.text], prompt=query_prompt, show_progress_bar=False)[0]
    hits = index.search(vector, k=asked.k)
    seconds = time.perf_counter() - start
    return _Found(hits=hits, instruction=query_prompt, documents=len(rows), seconds=seconds)


def _in_table(asked: _Query, folder: Path, where: str | None) -> _Found:
    with importing():
        from promptembedder.model import PromptEmbedder, manifest_on, model_config
        from promptembedder.search import VectorTable

    table = VectorTable(folder)
    manifest = manifest_on(read_manifest(asked.model), asked.reader, asked.model)
    table.facts.check_model(
        str(asked.model),
        sha256=file_sha256(asked.model / MANIFEST_NAME),
        reader=str(manifest.backbones["reader"]["source"]),
    )
    table.check_filter(where)
    default = model_config(manifest).default_instruction
    prompt = asked_or_saved(asked.instruction, "query", asked.model) or default
    compiled = prompt in manifest.instructions
    embedder = PromptEmbedder.from_pretrained(asked.model, reader=asked.reader, with_prompter=not compiled)
    start = time.perf_counter()
    vector = embedder.encode([asked.text], prompt=prompt, show_progress_bar=False)[0]
    hits = table.search(vector, k=asked.k, where=where)
    seconds = time.perf_counter() - start
    return _Found(hits=hits, instruction=prompt, documents=table.rows, seconds=seconds)


@contextmanager
def _progress(texts: int) -> Iterator[Callable[[int], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=texts)
        yield lambda rows: progress.advance(task, rows)


def _table(hits: "Sequence[Hit | TableHit]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(_one_line(hit.id)), Text(_one_line(hit.text or "")))
    return table


def _one_line(text: str) -> str:
    """The text without line ends, and without the control characters that would steer the terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[:_SHOWN_CHARACTERS]).split())
