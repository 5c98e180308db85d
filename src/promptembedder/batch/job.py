"""The embedding job: text files in, one Parquet file out, a chunk of rows at a time."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from promptembedder.batch.embedding_file import column_names, embedding_schema, whole_embedding_file
from promptembedder.data import TextRow, clean_text, read_texts
from promptembedder.errors import ConfigError, DataError
from promptembedder.backbone import MAX_BATCH_TOKENS, ReadingCounts
from promptembedder.model import PromptEmbedder
from promptembedder.types import Float
from promptembedder.storage import file_sha256, versions

__all__ = ["EmbedReport", "EmbedSettings", "check_files", "embed_files"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How text files are embedded.

    Attributes:
        instructions: Each gets its own column of vectors; none stands for the model's default instruction.
        text_column: As in `read_texts`, for each file.
        id_column: As in `read_texts`, for each file.
        max_batch_tokens: Tokens of texts read by the model at once, padding included.
        chunk_rows: Rows held in memory, sorted by length and written at once: a row group of the output.
        overwrite: Replace an output that exists.
    """

    instructions: tuple[str, ...] = ()
    text_column: str | None = None
    id_column: str | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    chunk_rows: int = 2048
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check each value at the door."""
        for name, value in (("max_batch_tokens", self.max_batch_tokens), ("chunk_rows", self.chunk_rows)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}. Leave it out for the default.")
        asked = [normal(instruction) for instruction in self.instructions]
        if not all(asked):
            raise ConfigError("an instruction is blank. Say in words what the vectors are for, or leave it out.")
        for i, instruction in enumerate(asked):
            if instruction in asked[:i]:
                raise ConfigError(f"the instruction {instruction!r} is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What an embedding job did.

    Attributes:
        columns: The instruction of each column of vectors, by the column's name.
        truncated: Texts that were longer than the model reads and lost their end.
        tokens: Of the texts, as far as the model reads them.
        padding_share: Of all tokens computed, 0..1.
        seconds: From the first row read to the file in its place.
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
        """Rows embedded and written each second."""
        return self.rows / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens of texts embedded each second."""
        return self.tokens / self.seconds


def check_files(files: Sequence[Path], output: Path, *, settings: EmbedSettings) -> None:
    """Raise now what `embed_files` would raise for its files, before a model is loaded.

    Raises:
        DataError: There is no file, one is missing, empty or lacks a column in its first row; or the output
            exists and is not to be overwritten, is one of the files, or does not end in .parquet.
    """
    if not files:
        raise DataError("there are no files to embed. Name at least one.")
    if output.suffix != ".parquet":
        raise DataError(f"{output} does not end in .parquet, which is what is written. Rename the output.")
    if output.is_dir():
        raise DataError(f"{output} is a folder. Name a file in it.")
    if output.resolve() in {path.resolve() for path in files}:
        raise DataError(f"{output} is both a file to embed and the output. Name another output.")
    if output.exists() and not settings.overwrite:
        raise DataError(f"{output} exists. Name another output, or set overwrite.")
    for path in files:
        rows = _rows_of(path, settings)
        if path.is_file():  # a pipe can be read only once
            next(rows)


def embed_files(
    model: PromptEmbedder,
    files: Sequence[Path],
    output: Path,
    *,
    settings: EmbedSettings,
    model_name: str | None = None,
    model_sha256: str | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> EmbedReport:
    """Embed the texts of `files`, in their order, into the Parquet file `output`.

    The output has the column `id` and, for each instruction, one of `dim` float32 values a row; its schema's
    metadata says which model, instructions, files and versions made it. It appears whole or not at all.

    Args:
        model_name: For the metadata; left out if None.
        model_sha256: Hash of the saved model's manifest, for the metadata; left out if None.
        on_rows: Called after each batch with the number of its rows.

    Raises:
        DataError: As in `check_files` and `read_texts`; or a vector is not finite.
        ConfigError: The model cuts its vectors, or an instruction needs a prompter that is not loaded.
    """
    check_files(files, output, settings=settings)
    if model.truncate_dim is not None:
        raise ConfigError(f"vectors cut to {model.truncate_dim} are not of length 1. Set truncate_dim to None.")
    start, truncated_before = time.perf_counter(), model.encoder.truncated_texts
    model.max_batch_tokens, model.encoder.reading.counts = settings.max_batch_tokens, ReadingCounts()
    instructions = [normal(text) for text in settings.instructions] or [model.encoder.settings.default_instruction]
    columns = dict(zip(column_names(len(instructions)), instructions, strict=True))
    metadata = _metadata(model, files, columns, model_name=model_name, model_sha256=model_sha256)
    rows, seen = 0, set[int]()
    dim = model.encoder.reader.dim
    schema = embedding_schema(instructions=len(columns), dim=dim, metadata=metadata)
    with whole_embedding_file(output, schema) as file:
        for chunk in _chunks(files, settings):
            texts = [row.text for row in chunk]
            vectors = embedded(model, texts, instructions, on_rows=on_rows)
            file.append([row.id for row in chunk], vectors)
            rows += len(chunk)
            seen.update(hash(row.id) for row in chunk)
    if len(seen) < rows:
        _logger.warning(
            "%d of %d rows have an id that came before; name an id column to tell them apart", rows - len(seen), rows
        )
    truncated, counts = model.encoder.truncated_texts - truncated_before, model.encoder.reading.counts
    return EmbedReport(
        output=output,
        rows=rows,
        dim=dim,
        columns=columns,
        truncated=truncated if model.encoder.reads_text_once else truncated // len(columns),
        tokens=counts.tokens,
        padding_share=counts.padding_share,
        seconds=time.perf_counter() - start,
    )


def embedded(
    model: PromptEmbedder, texts: list[str], instructions: Sequence[str], *, on_rows: Callable[[int], None]
) -> Float[np.ndarray, "instructions texts dim"]:
    if model.encoder.reads_text_once:
        return model.encode_instructions(texts, instructions, on_texts=on_rows)
    vectors = [model.encode(texts, prompt=instruction, show_progress_bar=False) for instruction in instructions]
    on_rows(len(texts))
    return np.stack(vectors)


def _chunks(files: Sequence[Path], settings: EmbedSettings) -> Iterator[list[TextRow]]:
    rows = chain.from_iterable(_rows_of(path, settings) for path in files)
    while chunk := list(islice(rows, settings.chunk_rows)):
        yield chunk


def _rows_of(path: Path, settings: EmbedSettings) -> Iterator[TextRow]:
    return read_texts(path, text_column=settings.text_column, id_column=settings.id_column)


def normal(instruction: str) -> str:
    """The instruction as the model knows it."""
    return clean_text(instruction).strip()


def _metadata(
    model: PromptEmbedder,
    files: Sequence[Path],
    columns: dict[str, str],
    *,
    model_name: str | None,
    model_sha256: str | None,
) -> dict[str, str]:
    # a pipe can be read only once
    sources = [{"name": path.name, "sha256": file_sha256(path) if path.is_file() else None} for path in files]
    known = {
        "model": model_name,
        "model_sha256": model_sha256,
        "reader": model.encoder.reader.ref.source,
        "columns": json.dumps(columns, ensure_ascii=False),
        "dim": str(model.encoder.reader.dim),
        "normalised": "true",
        "max_seq_length": str(model.encoder.max_seq_length),
        "files": json.dumps(sources, ensure_ascii=False),
        "versions": json.dumps(versions()),
    }
    return {key: value for key, value in known.items() if value is not None}
