"""`promptembedder search MODEL QUERY --corpus FILE`: the texts of a file that are nearest to a query."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import ConfigError
from promptembedder.storage import read_manifest

if TYPE_CHECKING:
    from promptembedder.search import Hit

__all__ = ["search"]

_SHOWN_CHARACTERS = 300  # more than a line of any terminal


def search(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    corpus: Annotated[Path, typer.Option(help="JSONL, CSV, TSV, Parquet or text file to look in.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits to show.")] = 5,
    instruction: Annotated[str | None, typer.Option(help="For the query; by default the model's own.")] = None,
    document_instruction: Annotated[str | None, typer.Option(help="For the texts; by default the model's own.")] = None,
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
    """Search a file: the query is compared with each text, in memory and exactly."""
    report = Report(as_json)
    with one_line_errors():
        manifest = read_manifest(model)
        if not query.strip():
            raise ConfigError("the query is blank. Say what to look for.")
        from promptembedder.data import read_texts  # seconds to import
        from promptembedder.models import PromptEmbedder, manifest_on, model_config
        from promptembedder.search import build_index

        rows = list(read_texts(corpus, text_column=text_column, id_column=id_column))
        manifest = manifest_on(manifest, reader, model)
        default = model_config(manifest).default_instruction
        query_prompt = _own_or_saved(instruction, "query", model) or default
        document_prompt = _own_or_saved(document_instruction, "document", model) or default
        compiled = {query_prompt, document_prompt} <= set(manifest.instructions)
        embedder = PromptEmbedder.from_pretrained(model, reader=reader, with_prompter=not compiled)
        start = time.perf_counter()
        with _progress(len(rows)) as on_rows:
            index = build_index(embedder, rows, prompt=document_prompt, on_rows=on_rows)
        hits = index.search(embedder.encode([query], prompt=query_prompt, show_progress_bar=False)[0], k=k)
        seconds = time.perf_counter() - start
    report.say(_table(hits, title=f"{len(rows)} texts, {seconds:.1f} s"))
    report.result(
        {
            "query": query,
            "instruction": query_prompt,
            "documents": len(rows),
            "hits": [dataclasses.asdict(hit) for hit in hits],
            "seconds": seconds,
        }
    )


def _own_or_saved(asked: str | None, role: str, model: Path) -> str:
    """The instruction that was asked for, else the one saved with the model for this role; blank if neither is."""
    path = model / "config_sentence_transformers.json"
    saved = json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
    return (asked or saved.get(role) or "").strip()


@contextmanager
def _progress(texts: int) -> Iterator[Callable[[int], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=texts)
        yield lambda rows: progress.advance(task, rows)


def _table(hits: "Sequence[Hit]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(_one_line(hit.id)), Text(_one_line(hit.text)))
    return table


def _one_line(text: str) -> str:
    """The text without line ends, and without the control characters that would steer the terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[:_SHOWN_CHARACTERS]).split())
