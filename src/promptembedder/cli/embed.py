"""`promptembedder embed MODEL FILES -o OUT`: embed text files into a folder of shards or one file."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, gc_paused, one_line_errors, plural
from promptembedder.cli.embed_texts import STANDARD_INPUT, print_vectors
from promptembedder.cli.options import ConfigOption, DimensionsOption, JsonOption, QuantizationOption, ReaderOption
from promptembedder.cli.progress import corpus_progress, row_progress
from promptembedder.errors import ConfigError
from promptembedder.storage import read_manifest

if TYPE_CHECKING:
    from promptembedder.batch import CorpusReport, EmbedReport

__all__ = ["embed"]

# endings of files that a user may expect as output
_OTHER_ENDINGS = (".csv", ".tsv", ".json", ".txt", ".npz", ".pkl", ".pt", ".h5", ".gz", ".zip")


def embed(
    model: Annotated[
        Path, typer.Argument(help="Folder of a saved model. For printed vectors also a hub id or backbone.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="JSONL, CSV, TSV, Parquet or text files, folders, globs or URLs. - embeds the lines of stdin."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of shards, or a .parquet, .jsonl or .npy file. The same command resumes a folder.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text to embed. Its vector is printed as a JSON line. Repeatable.", allow_from_autoenv=False),
    ] = None,
    instruction: Annotated[
        list[str] | None,
        # an environment variable would be split at spaces
        typer.Option(
            help="Instruction, one column of vectors each. Repeatable. Default: the model's.", allow_from_autoenv=False
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text. Default: text, document, passage, ...")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the id. Default: id, _id or the row number.")] = None,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens per batch, padding included. Bounds memory.")
    ] = 8192,
    dimensions: DimensionsOption = None,
    precision: Annotated[
        str, typer.Option(help="Numbers of the vectors: float32, int8 (scaled by vector) or binary (one bit each).")
    ] = "float32",
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Column to copy to the shards: NAME, NAME:int, NAME:float or NAME:bool. Repeatable."),
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 4096,
    engine: Annotated[
        str, typer.Option(help="Engine that writes shards: local, or ray for several workers.")
    ] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Number of workers of the engine ray. Each loads the model.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed texts under one or several instructions, with one pass over the texts.

    The vectors of --text and stdin are printed. The vectors of files are written to a folder of shards, which the same
    command resumes after an interruption, or to one file. A .npy file contains the vectors alone, in the order of the
    texts.

    Example: promptembedder embed runs/mine --text "one" --text "two" --instruction "Represent the topic"

    Example: promptembedder embed runs/mine corpus/ -o vectors/ --instruction "Represent the topic"

    Example: promptembedder embed runs/mine corpus.jsonl -o vectors.npy --dimensions 256 --precision int8
    """
    report = Report(as_json)
    with one_line_errors():
        if text or files == [STANDARD_INPUT]:
            if output is not None or (text and files):
                raise ConfigError("the vectors of --text and - are printed. Omit --output and other files.")
            print_vectors(
                report,
                str(model),
                text or [],
                instructions=instruction or [],
                reader=reader,
                quantization=quantization,
                max_batch_tokens=max_batch_tokens,
                dimensions=dimensions,
                precision=precision,
            )
            return
        if not files or output is None:
            raise ConfigError("no input or no output. Give FILES -o OUT, or texts with --text or -.")
        with gc_paused():  # seconds
            from promptembedder.batch import FILE_ENDINGS, EmbedConfig, VectorFormat, check_files, embed_files
            from promptembedder.model import PromptEmbedder, manifest_on, model_config, model_identity

        vector_format = VectorFormat(dimensions=dimensions, precision=precision)
        if output.suffix in _OTHER_ENDINGS:
            raise ConfigError(
                f"{output} would be a folder of shards. End the name in {', '.join(FILE_ENDINGS)}, or in nothing."
            )
        if output.suffix not in FILE_ENDINGS:
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
                    "vector_format": vector_format,
                },
                keep or [],
            )
            return
        if keep or engine != "local" or workers > 1:
            raise ConfigError(f"--keep, --engine and --workers need shards, but {output} is one file. Give a folder.")
        manifest = read_manifest(model)
        manifest = manifest_on(manifest, reader, model)
        default = model_config(manifest).default_instruction
        requested = [text.strip() for text in instruction or [default]]
        settings = EmbedConfig(
            instructions=tuple(requested),
            text_column=text_column,
            id_column=id_column,
            max_batch_tokens=max_batch_tokens,
            overwrite=overwrite,
            vector_format=vector_format,
        )
        paths = [Path(file) for file in files]
        check_files(paths, output, config=settings)
        identity = model_identity(model, reader=reader)
        compiled = set(requested) <= set(manifest.instructions)
        embedder = PromptEmbedder.from_pretrained(
            model, reader=reader, quantization=quantization, with_prompter=not compiled
        )
        name = str(model) if reader is None else f"{model} on {reader}"
        with row_progress(_count_rows(paths)) as on_rows:
            done = embed_files(
                embedder, paths, output, config=settings, model_name=name, identity=identity, on_rows=on_rows
            )
    report.print(_summary(done))
    report.result(_content(done, identity.sha256))


def _embed_corpus(
    report: Report, model: Path, files: list[str], output: Path, options: dict[str, Any], keep: list[str]
) -> None:
    with gc_paused():  # seconds
        from promptembedder.batch import EmbedConfig, PassthroughColumn, embed_corpus
        from promptembedder.model import model_identity

    settings = EmbedConfig(**options, passthrough=tuple(PassthroughColumn.parse(column) for column in keep))
    with corpus_progress() as on_progress:
        done = embed_corpus(model, files, output, config=settings, on_progress=on_progress)
    report.print(_corpus_summary(done))
    content = {**dataclasses.asdict(done), "output": str(done.output)}
    report.result({**content, "model_sha256": model_identity(model, reader=settings.reader).sha256})


def _count_rows(files: list[Path]) -> int | None:
    """Count the rows of the files, or return None if one of them is a pipe, which can be read only once."""
    from promptembedder.data import read_rows

    return sum(1 for path in files for _ in read_rows(path)) if all(path.is_file() for path in files) else None


def _corpus_summary(done: "CorpusReport") -> str:
    if done.skipped_shards:
        skipped = f" ({done.skipped_shards} already complete)"
    else:
        skipped = ""
    lines = [
        f"{plural(done.rows, 'row')} in {plural(done.shards, 'shard')}{skipped} "
        f"in {escape(str(done.output))}, {done.seconds:.1f} s",
        *(f"  {name}: {escape(text)}" for name, text in done.columns.items()),
    ]
    if done.embedded_rows:
        rows = done.embedded_rows / done.embedding_seconds
        tokens = done.embedded_tokens / done.embedding_seconds
        lines.append(f"{rows:.1f} rows and {tokens:.0f} tokens a second, loading the model included")
    if done.rejected:
        rows_text = "1 row was" if done.rejected == 1 else f"{done.rejected} rows were"
        lines.append(f"{rows_text} rejected, listed with reasons in {escape(str(done.output))}/rejected-*.jsonl")
    if done.truncated:
        lines.append(f"{plural(done.truncated, 'text')} exceeded the length limit and lost the end")
    return "\n".join(lines)


def _summary(done: "EmbedReport") -> str:
    lines = [
        f"{plural(done.rows, 'row')} of {done.dim} dimensions in {escape(str(done.output))}, "
        f"{done.seconds:.1f} s, {done.rows_per_second:.1f} rows and {done.tokens_per_second:.0f} tokens a second",
        *(f"  {name}: {escape(text)}" for name, text in done.columns.items()),
    ]
    if done.truncated:
        lines.append(f"{plural(done.truncated, 'text')} exceeded the length limit and lost the end")
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
