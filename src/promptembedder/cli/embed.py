"""`promptembedder embed MODEL FILES -o OUT`: embed text files into a folder of shards or one file."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, gc_paused, plural
from promptembedder.cli.options import (
    ConfigOption,
    DimensionsOption,
    IdColumnOption,
    JsonOption,
    MaxBatchTokensOption,
    PrecisionOption,
    QuantizationOption,
    ReaderOption,
    TextColumnOption,
    load_model,
)
from promptembedder.cli.progress import corpus_progress, count_rows, row_progress
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from promptembedder.batch import CorpusReport, EmbedReport, VectorFormat
    from promptembedder.model import PromptEmbedder

__all__ = ["embed"]

_STANDARD_INPUT = "-"
_PRINTED_BATCH = 256  # texts
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
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    max_batch_tokens: MaxBatchTokensOption = 8192,
    dimensions: DimensionsOption = None,
    precision: PrecisionOption = "float32",
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
    printed = bool(text) or files == [_STANDARD_INPUT]
    if printed and (output is not None or (text and files)):
        raise ConfigError("the vectors of --text and - are printed. Omit --output and other files.")
    if not printed and (not files or output is None):
        raise ConfigError("no input or no output. Give FILES -o OUT, or texts with --text or -.")
    with gc_paused():  # seconds
        from promptembedder.batch import FILE_ENDINGS, VectorFormat

    vector_format = VectorFormat(dimensions=dimensions, precision=precision)
    if output is None or not files:
        embedder = _load_any(str(model), instruction or [], reader=reader, quantization=quantization)
        embedder.max_batch_tokens = max_batch_tokens
        _print_vectors(report, embedder, text or [], instruction or [""], vector_format)
        return
    if output.suffix in _OTHER_ENDINGS:
        raise ConfigError(
            f"{output} would be a folder of shards. End the name in {', '.join(FILE_ENDINGS)}, or in nothing."
        )
    options: dict[str, Any] = {
        "instructions": tuple(instruction or ()),
        "text_column": text_column,
        "id_column": id_column,
        "max_batch_tokens": max_batch_tokens,
        "overwrite": overwrite,
        "vector_format": vector_format,
    }
    if output.suffix not in FILE_ENDINGS:
        options |= {"reader": reader, "quantization": quantization}
        options |= {"shard_rows": shard_rows, "engine": engine, "workers": workers}
        _embed_corpus(report, model, files, output, options, keep or [])
        return
    if keep or engine != "local" or workers > 1:
        raise ConfigError(f"--keep, --engine and --workers need shards, but {output} is one file. Give a folder.")
    _embed_files(report, model, [Path(file) for file in files], output, options, reader, quantization)


def _embed_files(
    report: Report,
    model: Path,
    paths: list[Path],
    output: Path,
    options: dict[str, Any],
    reader: str | None,
    quantization: str | None,
) -> None:
    with gc_paused():  # seconds
        from promptembedder.batch import EmbedConfig, check_files, embed_files
        from promptembedder.model import manifest_on, model_config, model_identity

    default = model_config(manifest_on(read_manifest(model), reader, model)).default_instruction
    instructions = tuple(text.strip() for text in options["instructions"] or [default])
    settings = EmbedConfig(**{**options, "instructions": instructions})
    check_files(paths, output, config=settings)
    identity = model_identity(model, reader=reader)
    embedder = load_model(model, instructions, reader=reader, quantization=quantization)
    name = str(model) if reader is None else f"{model} on {reader}"
    with row_progress(count_rows(paths)) as on_rows:
        done = embed_files(
            embedder, paths, output, config=settings, model_name=name, identity=identity, on_rows=on_rows
        )
    report.print(_summary(done))
    rates = {"rows_per_second": done.rows_per_second, "tokens_per_second": done.tokens_per_second}
    content = {**dataclasses.asdict(done), **rates, "output": str(done.output)}
    report.result({**content, "model_sha256": identity.sha256})


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


def _print_vectors(
    report: Report,
    embedder: "PromptEmbedder",
    texts: Sequence[str],
    instructions: Sequence[str],
    vector_format: "VectorFormat",
) -> None:
    """Print one JSON object per text and instruction: text, instruction, embedding.

    Args:
        texts: Texts to embed. If empty, the lines of standard input.

    Raises:
        DataError: There is no text.
    """
    dim = embedder.encoder.reader.dim
    vector_format.check(dim)
    resolved = [embedder.encoder.instruction_of(name) for name in instructions]
    count = 0
    for batch in _batches(texts or (line.rstrip("\r\n") for line in sys.stdin if line.strip())):
        vectors = vector_format.reduce(embedder.encode_instructions(batch, resolved))
        for row, text in enumerate(batch):
            for name, rows in zip(resolved, vectors, strict=True):
                content = {"text": text, "instruction": name, "embedding": rows[row].tolist()}
                print(json.dumps(content, ensure_ascii=False))
        count += len(batch)
    if count == 0:
        raise DataError("no text on standard input. Write one text per line.")
    report.result({"texts": count, "instructions": resolved, "dim": vector_format.dimensions or dim})


def _load_any(
    model: str, instructions: Sequence[str], *, reader: str | None, quantization: str | None
) -> "PromptEmbedder":
    """Load a saved model by folder or hub id, or an untrained model of a backbone, with a warning."""
    with gc_paused():  # seconds
        from promptembedder.data import clean_instruction
        from promptembedder.model import PromptEmbedder, is_hub_id, manifest_on, model_config, saved_folder

    if (Path(model) / MANIFEST_NAME).is_file() or is_hub_id(model):
        folder = saved_folder(model)
        default = model_config(manifest_on(read_manifest(folder), reader, folder)).default_instruction
        resolved = [clean_instruction(name) or default for name in instructions or ("",)]
        return load_model(folder, resolved, reader=reader, quantization=quantization)
    if reader is not None or quantization is not None:
        raise ConfigError(f"{model} is not a saved model. Omit --reader and --quantization.")
    embedder = PromptEmbedder.create(prompter=model)
    sys.stderr.write(f"{model} is a backbone: the vectors come from an untrained model\n")
    return embedder


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _PRINTED_BATCH)):
        yield batch
