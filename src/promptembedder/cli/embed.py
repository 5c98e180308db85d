"""`promptembedder embed MODEL FILES -o OUT`: the vectors of text files, in a folder of shards or one file."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, importing, one_line_errors
from promptembedder.cli.embed_texts import STANDARD_INPUT, print_vectors
from promptembedder.cli.options import ConfigOption, JsonOption, QuantizationOption, ReaderOption
from promptembedder.cli.console import corpus_progress, row_count
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, file_sha256, read_manifest

if TYPE_CHECKING:
    from promptembedder.batch import CorpusReport, EmbedReport

__all__ = ["embed"]


def embed(
    model: Annotated[
        Path, typer.Argument(help="Folder of a saved model; to print vectors, a hub id or backbone, too.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="JSONL, CSV, TSV, Parquet or text files; folders, globs and URLs, too; - prints stdin's lines."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of shards, resumed by the same command; or one .parquet."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text itself: its vector is printed as a JSON line.", allow_from_autoenv=False),
    ] = None,
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
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Column to write beside the vectors: NAME, or NAME:int, :float, :bool. Shards only."),
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 4096,
    engine: Annotated[str, typer.Option(help="Of shards: local, or ray for several workers.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Of the engine ray, each with a model of its own.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed text files; several instructions cost one pass over the texts.

    A few texts are printed; files go into a folder of shards, which the same command goes on with after whatever ended
    it, or into one .parquet file.

    Example: promptembedder embed runs/mine --text "one" --text "two" --instruction "Represent the topic"

    Example: promptembedder embed runs/mine corpus/ -o vectors/ --instruction "Represent the topic"
    """
    report = Report(as_json)
    with one_line_errors():
        if text or files == [STANDARD_INPUT]:
            if output is not None or (text and files):
                raise ConfigError("texts given by --text or - are printed. Leave out --output and other files.")
            print_vectors(
                report,
                str(model),
                text or [],
                instructions=instruction or [],
                reader=reader,
                quantization=quantization,
                max_batch_tokens=max_batch_tokens,
            )
            return
        if not files or output is None:
            raise ConfigError("name the files and where the vectors go: FILES -o OUT. Or give texts with --text, or -.")
        if output.suffix != ".parquet":
            _embed_corpus(
                report,
                model,
                files,
                output,
                {
                    "instructions": tuple(instruction or ()),
                    "text_column": text_column,
                    "id_column": id_column,
                    "reader": reader,
                    "quantization": quantization,
                    "max_batch_tokens": max_batch_tokens,
                    "shard_rows": shard_rows,
                    "engine": engine,
                    "workers": workers,
                    "overwrite": overwrite,
                },
                keep or [],
            )
            return
        if keep or engine != "local" or workers > 1:
            raise ConfigError(f"keep, engine and workers are for shards, and {output} is one file. Name a folder.")
        manifest = read_manifest(model)
        with importing():  # seconds
            from promptembedder.batch import EmbedSettings, check_files, embed_files
            from promptembedder.model import PromptEmbedder, manifest_on, model_config

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
        paths = [Path(file) for file in files]
        check_files(paths, output, settings=settings)
        sha256 = file_sha256(model / MANIFEST_NAME)
        compiled = set(asked) <= set(manifest.instructions)
        embedder = PromptEmbedder.from_pretrained(
            model, reader=reader, quantization=quantization, with_prompter=not compiled
        )
        name = str(model) if reader is None else f"{model} on {reader}"
        with row_count() as on_rows:
            done = embed_files(
                embedder, paths, output, settings=settings, model_name=name, model_sha256=sha256, on_rows=on_rows
            )
    report.say(_summary(done))
    report.result(_content(done, sha256))


def _embed_corpus(
    report: Report, model: Path, files: list[str], output: Path, options: dict[str, Any], keep: list[str]
) -> None:
    with importing():  # seconds
        from promptembedder.batch import CorpusSettings, KeptColumn, embed_corpus

    settings = CorpusSettings(**options, kept=tuple(KeptColumn.parsed(column) for column in keep))
    with corpus_progress() as on_progress:
        done = embed_corpus(model, files, output, settings=settings, on_progress=on_progress)
    report.say(_corpus_summary(done))
    content = {**dataclasses.asdict(done), "output": str(done.output)}
    report.result({**content, "model_sha256": file_sha256(model / MANIFEST_NAME)})


def _corpus_summary(done: "CorpusReport") -> str:
    if done.skipped_shards:
        skipped = f" ({done.skipped_shards} of them were finished before)"
    else:
        skipped = ""
    lines = [
        f"{done.rows} rows in {done.shards} shards{skipped} in {escape(str(done.output))}, {done.seconds:.1f} s",
        *(f"  {name}: {escape(asked)}" for name, asked in done.columns.items()),
    ]
    if done.embedded_rows:
        rows = done.embedded_rows / done.embedding_seconds
        tokens = done.embedded_tokens / done.embedding_seconds
        lines.append(f"{rows:.1f} rows and {tokens:.0f} tokens a second, loading the model included")
    if done.rejected:
        lines.append(
            f"{done.rejected} rows could not be used; {escape(str(done.output))}/rejected-*.jsonl say which and why"
        )
    if done.truncated:
        lines.append(f"{done.truncated} texts were longer than the model reads and lost their end")
    return "\n".join(lines)


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
