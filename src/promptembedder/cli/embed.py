"""`promptembedder embed MODEL FILES -o OUT.parquet`: the vectors of text files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, QuantizationOption, ReaderOption
from promptembedder.storage import MANIFEST_NAME, file_sha256, read_manifest

if TYPE_CHECKING:
    from promptembedder.batch import EmbedReport

__all__ = ["embed"]


def embed(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    files: Annotated[list[Path], typer.Argument(help="JSONL, CSV, TSV, Parquet or text files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
    instruction: Annotated[
        list[str] | None,
        # an environment variable would be split at spaces
        typer.Option(help="One column of vectors each; by default the model's own.", allow_from_autoenv=False),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text; by default text, document, passage, ...")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the id; by default id, _id or the row's number.")
    ] = None,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens read at once, padding included: bounds memory.")
    ] = 8192,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed text files into one Parquet file; several instructions cost one pass over the texts."""
    report = Report(as_json)
    with one_line_errors():
        manifest = read_manifest(model)
        from promptembedder.batch import EmbedSettings, check_files, embed_files  # seconds to import
        from promptembedder.models import PromptEmbedder, manifest_on, model_config

        manifest = manifest_on(manifest, reader, model)
        default = model_config(manifest).default_instruction
        asked = [text.strip() for text in instruction or [default]]
        settings = EmbedSettings(
            instructions=tuple(asked),
            text_column=text_column,
            id_column=id_column,
            max_batch_tokens=max_batch_tokens,
            overwrite=overwrite,
        )
        check_files(files, output, settings=settings)
        sha256 = file_sha256(model / MANIFEST_NAME)
        compiled = set(asked) <= set(manifest.instructions)
        embedder = PromptEmbedder.from_pretrained(
            model, reader=reader, quantization=quantization, with_prompter=not compiled
        )
        name = str(model) if reader is None else f"{model} on {reader}"
        with _progress() as on_rows:
            done = embed_files(
                embedder, files, output, settings=settings, model_name=name, model_sha256=sha256, on_rows=on_rows
            )
    report.say(_summary(done))
    report.result(_content(done, sha256))


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A count of rows on stderr; how many there will be is known only at the end of the last file."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed} rows"),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda rows: progress.advance(task, rows)


def _summary(done: "EmbedReport") -> str:
    lines = [
        f"{done.rows} rows of {done.dim} dimensions in {escape(str(done.output))}, "
        f"{done.seconds:.1f} s, {done.rows_per_second:.1f} rows and {done.tokens_per_second:.0f} tokens a second",
        *(f"  {name}: {escape(asked)}" for name, asked in done.columns.items()),
    ]
    if done.truncated:
        lines.append(f"{done.truncated} texts were longer than the model reads and lost their end")
    return "\n".join(lines)


def _content(done: "EmbedReport", model_sha256: str) -> dict[str, Any]:
    return {
        "output": str(done.output),
        "rows": done.rows,
        "dim": done.dim,
        "columns": done.columns,
        "truncated": done.truncated,
        "seconds": done.seconds,
        "rows_per_second": done.rows_per_second,
        "tokens": done.tokens,
        "tokens_per_second": done.tokens_per_second,
        "padding_share": done.padding_share,
        "model_sha256": model_sha256,
    }
