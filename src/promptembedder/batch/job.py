"""Embedding job from text files to one output file, in chunks of rows."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from promptembedder.backbone import MAX_BATCH_TOKENS, BatchStats
from promptembedder.batch.embedding_file import FILE_ENDINGS, atomic_embedding_file, column_names, embedding_schema
from promptembedder.batch.vector_format import WHOLE_VECTORS, VectorFormat
from promptembedder.data import TextRow, clean_text, read_texts
from promptembedder.errors import ConfigError, DataError
from promptembedder.model import ModelIdentity, PromptEmbedder
from promptembedder.storage import check_writable, file_sha256, versions
from promptembedder.types import Float

__all__ = ["EmbedConfig", "EmbedReport", "check_files", "embed_files"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Configuration of an embedding job with one output file.

    Attributes:
        instructions: Instructions, one vector column each. If empty, the model's default instruction.
        text_column: Column of the text, as in `read_texts`, for each file.
        id_column: Column of the id, as in `read_texts`, for each file.
        max_batch_tokens: Maximum number of tokens of a forward pass, padding included.
        chunk_rows: Number of rows held in memory, batched by length and written as one row group.
        overwrite: Replace an existing output.
        vector_format: Dimensions and precision of the stored vectors.
    """

    instructions: tuple[str, ...] = ()
    text_column: str | None = None
    id_column: str | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    chunk_rows: int = 2048
    overwrite: bool = False
    vector_format: VectorFormat = WHOLE_VECTORS

    def __post_init__(self) -> None:
        """Validate each value."""
        for name, value in (("max_batch_tokens", self.max_batch_tokens), ("chunk_rows", self.chunk_rows)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}. Leave it out for the default.")
        normalized = [normalize_instruction(instruction) for instruction in self.instructions]
        if not all(normalized):
            raise ConfigError("an instruction is blank. Describe the task of the vectors, or leave it out.")
        for i, instruction in enumerate(normalized):
            if instruction in normalized[:i]:
                raise ConfigError(f"the instruction {instruction!r} is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """Result of an embedding job.

    Attributes:
        output: Path of the file.
        rows: Number of rows.
        dim: Number of dimensions of the stored vectors.
        columns: Instruction of each vector column, by column name.
        truncated: Number of texts longer than the model's maximum, cut off at the end.
        tokens: Number of tokens of the texts after truncation.
        padding_share: Share of padding in all computed tokens, 0..1.
        seconds: Duration of the job in seconds, without loading the model.
    """

    output: Path
    rows: int
    dim: int
    columns: dict[str, str]
    truncated: int
    tokens: int
    padding_share: float
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Throughput in rows per second."""
        return self.rows / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Throughput in tokens per second, without padding."""
        return self.tokens / self.seconds


def check_files(files: Sequence[Path], output: Path, *, config: EmbedConfig) -> None:
    """Check the files and the output of `embed_files` before a model is loaded.

    Raises:
        DataError: If there is no file, a file is missing, empty or lacks a column in its first row, or the output
            exists and must not be overwritten, is one of the files, or has an unknown ending.
        SaveError: If the output cannot be written.
    """
    if not files:
        raise DataError("there are no files to embed. Name at least one.")
    if output.suffix not in FILE_ENDINGS:
        raise DataError(f"{output} does not end in {', '.join(FILE_ENDINGS)}, the formats of files. Rename the output.")
    if output.is_dir():
        raise DataError(f"{output} is a folder. Name a file in it.")
    if output.resolve() in {path.resolve() for path in files}:
        raise DataError(f"{output} is both a file to embed and the output. Name another output.")
    if output.exists() and not config.overwrite:
        raise DataError(f"{output} exists. Name another output, or pass --overwrite.")
    check_writable(output)
    for path in files:
        rows = _read_rows(path, config)
        if path.is_file():  # a pipe can be read only once
            next(rows)


def embed_files(
    model: PromptEmbedder,
    files: Sequence[Path],
    output: Path,
    *,
    config: EmbedConfig,
    model_name: str | None = None,
    identity: ModelIdentity | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> EmbedReport:
    """Embed the texts of `files`, in their order, into the file `output`.

    A Parquet or JSONL file has the column `id` and, for each instruction, a column of vectors. The metadata of a
    Parquet schema contains the model, instructions, files and library versions. An NPY file contains the vectors alone.
    The output is written atomically.

    Args:
        model_name: Name of the model for the metadata. If None, left out.
        identity: Identity of the saved model for the metadata. If None, left out.
        on_rows: Called after each batch with the number of its rows.

    Raises:
        DataError: As in `check_files` and `read_texts`; or if a vector is not finite.
        ConfigError: If the model truncates its vectors or has fewer dimensions than the format, or if an instruction
            needs a prompter that is not loaded.
    """
    check_files(files, output, config=config)
    _check_dimensions(model, config)
    start, truncated_before = time.perf_counter(), model.encoder.truncated_texts
    model.max_batch_tokens, model.encoder.reading.counts = config.max_batch_tokens, BatchStats()
    instructions = [normalize_instruction(text) for text in config.instructions] or [
        model.encoder.config.default_instruction
    ]
    columns = dict(zip(column_names(len(instructions)), instructions, strict=True))
    metadata = _metadata(model, files, columns, model_name=model_name, identity=identity)
    metadata |= vector_metadata(config.vector_format, model.encoder.reader.dim)
    rows, seen = 0, set[int]()
    dim = model.encoder.reader.dim
    schema = embedding_schema(instructions=len(columns), dim=dim, metadata=metadata, vector_format=config.vector_format)
    with atomic_embedding_file(output, schema, config.vector_format) as file:
        for chunk in _read_chunks(files, config):
            texts = [row.text for row in chunk]
            vectors = embed_texts(model, texts, instructions, on_rows=on_rows)
            file.append([row.id for row in chunk], vectors)
            rows += len(chunk)
            seen.update(hash(row.id) for row in chunk)
    _warn_of_repeated_ids(rows, distinct=len(seen))
    truncated, counts = model.encoder.truncated_texts - truncated_before, model.encoder.reading.counts
    return EmbedReport(
        output=output,
        rows=rows,
        dim=config.vector_format.dimensions or dim,
        columns=columns,
        truncated=truncated if model.encoder.reads_text_once else truncated // len(columns),
        tokens=counts.tokens,
        padding_share=counts.padding_share,
        seconds=time.perf_counter() - start,
    )


def _check_dimensions(model: PromptEmbedder, config: EmbedConfig) -> None:
    if model.truncate_dim is not None:
        raise ConfigError(
            f"vectors cut to {model.truncate_dim} dimensions do not have length 1. Set truncate_dim to None, "
            "and the dimensions in vector_format."
        )
    config.vector_format.check(model.encoder.reader.dim)


def _warn_of_repeated_ids(rows: int, *, distinct: int) -> None:
    if distinct < rows:
        _logger.warning(
            "%d of %d rows have an id that came before. Name an id column with distinct ids", rows - distinct, rows
        )


def embed_texts(
    model: PromptEmbedder, texts: list[str], instructions: Sequence[str], *, on_rows: Callable[[int], None]
) -> Float[np.ndarray, "instructions texts dim"]:
    """Compute the vectors of the texts under each instruction, in one pass over the texts if the model allows it."""
    if model.encoder.reads_text_once:
        return model.encode_instructions(texts, instructions, on_texts=on_rows)
    vectors = [model.encode(texts, prompt=instruction, show_progress_bar=False) for instruction in instructions]
    on_rows(len(texts))
    return np.stack(vectors)


def _read_chunks(files: Sequence[Path], config: EmbedConfig) -> Iterator[list[TextRow]]:
    rows = chain.from_iterable(_read_rows(path, config) for path in files)
    while chunk := list(islice(rows, config.chunk_rows)):
        yield chunk


def _read_rows(path: Path, config: EmbedConfig) -> Iterator[TextRow]:
    return read_texts(path, text_column=config.text_column, id_column=config.id_column)


def normalize_instruction(instruction: str) -> str:
    """Clean the instruction and strip surrounding blanks, as the model does."""
    return clean_text(instruction).strip()


def vector_metadata(vector_format: VectorFormat, dim: int) -> dict[str, str]:
    """Describe vectors with `dim` dimensions in a format, for the metadata of a schema."""
    whole = vector_format.precision == "float32"
    return {
        "dim": str(vector_format.dimensions or dim),
        "normalised": "true" if whole else "false",
        **({} if whole else {"precision": vector_format.precision}),
    }


def _metadata(
    model: PromptEmbedder,
    files: Sequence[Path],
    columns: dict[str, str],
    *,
    model_name: str | None,
    identity: ModelIdentity | None,
) -> dict[str, str]:
    # a pipe can be read only once
    sources = [{"name": path.name, "sha256": file_sha256(path) if path.is_file() else None} for path in files]
    known = {
        "model": model_name,
        "model_sha256": None if identity is None else identity.sha256,
        "manifest_sha256": None if identity is None else identity.manifest_sha256,
        "reader": model.encoder.reader.identity.source,
        "columns": json.dumps(columns, ensure_ascii=False),
        "max_seq_length": str(model.encoder.max_seq_length),
        "files": json.dumps(sources, ensure_ascii=False),
        "versions": json.dumps(versions()),
    }
    return {key: value for key, value in known.items() if value is not None}
