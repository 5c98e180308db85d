"""Rows of a vector table, from the Parquet files that an embedding job wrote or from a file of texts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.data import COLUMN_KINDS, TextRow, clean_text, convert_value, read_rows, read_texts
from promptembedder.errors import DataError, first_line, short_repr
from promptembedder.model import Encoder
from promptembedder.search.table_schema import TableMetadata, read_schema_metadata, row_batch

__all__ = ["CorpusRows", "EmbeddingRows", "holds_embeddings", "open_embeddings"]

_SHARDS = "manifest.jsonl"
_BATCH_ROWS = 2048
_MAX_LISTED_COLUMNS = 20


@dataclass(frozen=True, kw_only=True)
class EmbeddingRows:
    """Rows of one file, or of the shards of a job in order.

    Attributes:
        files: Parquet files with the same schema.
        column: Column of the vectors.
        text_column: Column of the texts. None without one.
        table_metadata: Identity of the model, and the instruction of the vectors.
        metadata: Type of each metadata column, by name.
    """

    files: tuple[Path, ...]
    column: str
    text_column: str | None
    table_metadata: TableMetadata
    metadata: Mapping[str, str]

    def ids(self) -> Iterator[Sequence[str]]:
        """Iterate over the ids, one batch at a time.

        Raises:
            DataError: If a file is damaged, or a row has no id.
        """
        for path in self.files:
            for batch in _batches(path, ["id"]):
                if batch["id"].null_count:
                    raise DataError(f"{path} has a row without an id. Add an id to each row.")
                yield _strings(batch["id"], path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows as record batches.

        Raises:
            DataError: If a file is damaged, a vector is missing, not finite or not of length 1, or a metadata value
                does not fit the type of its column.
        """
        texts = [] if self.text_column is None else [self.text_column]
        for path in self.files:
            for batch in _batches(path, ["id", self.column, *texts, *self.metadata]):
                vectors = batch[self.column]
                if vectors.null_count or vectors.flatten().null_count:
                    raise DataError(f"{path} has a row without a vector in {self.column!r}. Embed the rows again.")
                flat = vectors.flatten().to_numpy(zero_copy_only=False)
                metadata = {
                    name: _cast(batch[name], kind, f"{path}: {short_repr(name)}")
                    for name, kind in self.metadata.items()
                }
                no_texts = pa.nulls(len(batch), pa.string())
                row_texts = no_texts if self.text_column is None else batch[self.text_column].cast(pa.string())
                yield row_batch(_strings(batch["id"], path), flat.reshape(len(batch), -1), row_texts, metadata)


def holds_embeddings(path: Path) -> bool:
    """Return True for a folder, and for a Parquet file that an embedding job wrote."""
    if path.is_dir():
        return True
    return (
        path.name.lower().endswith(".parquet") and path.is_file() and "columns" in read_schema_metadata(_schema(path))
    )


def open_embeddings(
    path: Path,
    *,
    column: str | None = None,
    instruction: str | None = None,
    text_column: str | None = None,
    keep: Sequence[str] | None = None,
) -> EmbeddingRows:
    """Open a Parquet file that `embed` wrote, or a folder of such shards with a `manifest.jsonl`.

    Args:
        column: Vector column. Needed if there are several and no `instruction` is given.
        instruction: Instruction of the vector column, as an alternative to `column`.
        text_column: Column of the texts. If None, `text` if there is such a column.
        keep: Metadata columns. If None, all remaining columns.

    Raises:
        DataError: If the file or a column does not exist, no embedding job wrote the file, the shards belong to
            different jobs, or a column has a type that a table cannot store.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    files = _shards(path) if path.is_dir() else (path,)
    schema = _schema(files[0])
    columns = _vector_columns(schema, files[0])
    vector_column = _choose_column(columns, files[0], column=column, instruction=instruction)
    texts = text_column or ("text" if "text" in schema.names else None)
    others = [name for name in schema.names if name not in ("id", texts, *columns)] if keep is None else list(keep)
    text_columns = ["id"] if texts is None else ["id", texts]
    _check_columns(files[0], schema, text_columns, vector_column, others)
    known = read_schema_metadata(schema)
    for other in files[1:]:
        _check_shard(other, [schema.field(name) for name in (*text_columns, vector_column, *others)], known)
    return EmbeddingRows(
        files=files,
        column=vector_column,
        text_column=texts,
        table_metadata=TableMetadata(
            model=known.get("model", known["model_sha256"][:12]),
            model_sha256=known["model_sha256"],
            manifest_sha256=known.get("manifest_sha256", ""),
            reader=known.get("reader", ""),
            instruction=columns[vector_column],
        ),
        metadata={name: _require_kind(schema.field(name), files[0]) for name in others},
    )


def _check_columns(
    path: Path, schema: pa.Schema, text_columns: Sequence[str], vector_column: str, others: Sequence[str]
) -> None:
    """Check that the columns exist and that texts and vectors have their types."""
    for name in (*text_columns, vector_column, *others):
        if name not in schema.names:
            raise DataError(
                f"{path} has no column {short_repr(name)}: found {short_repr(schema.names)}. Name one of these."
            )
    for name in text_columns:
        if _kind(schema.field(name).type) != "str":
            raise DataError(
                f"{path}: column {short_repr(name)} contains {schema.field(name).type}, not strings. Convert it."
            )
    vectors = schema.field(vector_column).type
    if not pa.types.is_fixed_size_list(vectors) or vectors.list_size < 1:
        raise DataError(f"{path}: column {short_repr(vector_column)} contains {vectors}, not vectors. Embed again.")
    if not pa.types.is_float32(vectors.value_type):
        raise DataError(
            f"{path}: column {short_repr(vector_column)} contains {vectors.value_type} vectors, a table needs "
            "float32. Embed with --precision float32."
        )


def _shards(folder: Path) -> tuple[Path, ...]:
    """List the files in the folder's manifest in order of shard number. For repeated numbers, the last line counts."""
    manifest = folder / _SHARDS
    if not manifest.is_file():
        raise DataError(f"{folder} has no {_SHARDS}, so it is not the output of an embedding job. Name such a folder.")
    names: dict[int, str] = {}
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            shard = json.loads(line)
            names[int(shard["shard"])] = str(shard["file"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{manifest}, line {number}: no shard and file in {line[:60]!r}. Run the embedding job to its end."
            ) from error
    if not names:
        raise DataError(f"{manifest} lists no shard. Run the embedding job to its end.")
    files = tuple(folder / Path(names[shard]).name for shard in sorted(names))  # .name: never a file outside the folder
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} is listed in {manifest} but does not exist. Copy the folder again, or embed again.")
    return files


def _schema(path: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
        names, _ = schema.names, read_schema_metadata(schema)  # raises if they are not UTF-8
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({first_line(error)}). "
            "Name an output of `promptembedder embed`, or a text file with --model."
        ) from error
    duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
    if duplicate is not None:
        raise DataError(f"{path} has two columns {short_repr(duplicate)}. Rename one of them.")
    return schema


def _vector_columns(schema: pa.Schema, path: Path) -> dict[str, str]:
    """Read the instruction of each vector column from the schema."""
    known = read_schema_metadata(schema)
    missing = next((key for key in ("columns", "model_sha256") if key not in known), None)
    if missing is not None:
        raise DataError(
            f"{path} has no record of the model of its vectors (no promptembedder.{missing} in the schema). "
            "Write it with `promptembedder embed`."
        )
    try:
        columns = json.loads(known["columns"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: its columns are not JSON ({first_line(error)}). Embed again.") from error
    if not isinstance(columns, dict) or not all(isinstance(text, str) for text in columns.values()):
        raise DataError(f"{path} is damaged: its columns are {short_repr(columns)}. Embed again.")
    return columns


def _choose_column(columns: Mapping[str, str], path: Path, *, column: str | None, instruction: str | None) -> str:
    wanted = None if instruction is None else clean_text(instruction).strip()
    matches = [
        name for name, text in columns.items() if column in (None, name) and (wanted is None or text.strip() == wanted)
    ]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(
        f"{short_repr(name)} ({short_repr(text)})" for name, text in islice(columns.items(), _MAX_LISTED_COLUMNS)
    )
    if not matches:
        raise DataError(f"{path} has no vectors of {column or instruction!r}: found {listed}. Name one of these.")
    raise DataError(f"{path} has several vector columns: {listed}. Choose one with --column or --instruction.")


def _check_shard(path: Path, expected: Sequence[pa.Field], known: Mapping[str, str]) -> None:
    schema = _schema(path)
    same = all(read_schema_metadata(schema).get(key) == known.get(key) for key in ("model_sha256", "reader", "columns"))
    if not same or any(one.name not in schema.names or schema.field(one.name).type != one.type for one in expected):
        raise DataError(f"{path} is of another model, instruction or schema than the shards before it. Embed again.")


def _require_kind(field: pa.Field, path: Path) -> str:
    kind = _kind(field.type)
    if kind is None:
        raise DataError(
            f"{path}: column {short_repr(field.name)} contains {field.type}. Metadata columns can be "
            f"{', '.join(COLUMN_KINDS)}. Name the columns to store with --metadata."
        )
    return kind


def _kind(type_: pa.DataType) -> str | None:
    tests = {
        "str": lambda: pa.types.is_string(type_) or pa.types.is_large_string(type_),
        "int": lambda: pa.types.is_integer(type_),
        "float": lambda: pa.types.is_floating(type_),
        "bool": lambda: pa.types.is_boolean(type_),
    }
    return next((kind for kind, test in tests.items() if test()), None)


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: unreadable Parquet ({first_line(error)}). Write the file again.") from error


def _strings(values: pa.Array, path: Path) -> list[str]:
    try:
        return values.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} contains an id that is not UTF-8 ({first_line(error)}). Embed again.") from error


def _cast(values: pa.Array, kind: str, location: str) -> pa.Array:
    try:
        return values.cast(COLUMN_KINDS[kind])
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{location} cannot be stored as {kind} ({first_line(error)}). Correct the row, or leave the column out."
        ) from error


@dataclass(frozen=True, kw_only=True)
class CorpusRows:
    """Texts of a file with their vectors and metadata columns.

    Attributes:
        path: File in a format of `read_texts`. Must be a regular file, because it is read more than once.
        load_encoder: Loads the encoder. Called when the first vector is needed, after all rows have been validated.
        table_metadata: Identity of the encoder, and the instruction for the texts.
        metadata: Type of each metadata column, by name.
        text_column: Column of the text, as in `read_texts`.
        id_column: Column of the id, as in `read_texts`.
        chunk_rows: Number of rows held in memory and embedded together.
        on_rows: Called after each chunk with the number of its rows.
    """

    path: Path
    load_encoder: Callable[[], Encoder]
    table_metadata: TableMetadata
    metadata: Mapping[str, str] = field(default_factory=dict)
    text_column: str | None = None
    id_column: str | None = None
    chunk_rows: int = 512
    on_rows: Callable[[int], None] = lambda _: None

    def ids(self) -> Iterator[Sequence[str]]:
        """Iterate over the ids, one chunk at a time, and validate the rows.

        Raises:
            DataError: As in `read_texts`; if the file is a pipe, a row lacks a metadata column, or a value does not
                have the type of its column.
        """
        for chunk in self._chunks():
            yield [row.id for row, _ in chunk]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows as record batches, with vectors normalized to length 1.

        Raises:
            DataError: As in `ids`; or if a vector is not finite, or zero.
        """
        encoder = self.load_encoder()
        for chunk in self._chunks():
            texts = [row.text for row, _ in chunk]
            vectors = np.asarray(
                encoder.encode(texts, prompt=self.table_metadata.instruction, show_progress_bar=False), dtype=np.float32
            )
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(lengths == 0, 1, lengths)
            columns = {
                name: pa.array([values[name] for _, values in chunk], type=COLUMN_KINDS[kind])
                for name, kind in self.metadata.items()
            }
            yield row_batch([row.id for row, _ in chunk], vectors, pa.array(texts, type=pa.string()), columns)
            self.on_rows(len(chunk))

    def _chunks(self) -> Iterator[list[tuple[TextRow, dict[str, Any]]]]:
        if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
            raise DataError(
                f"{self.path} is not a regular file, and it is read more than once. Save it as a file first."
            )
        texts = read_texts(self.path, text_column=self.text_column, id_column=self.id_column)
        # a second pass in parallel: read_texts returns no other columns
        values = (self._values(row, number) for number, row in enumerate(read_rows(self.path), start=1))
        rows = zip(texts, values, strict=True)
        while chunk := list(islice(rows, self.chunk_rows)):
            yield chunk

    def _values(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        values = {}
        for name, kind in self.metadata.items():
            location = f"{self.path}, row {number}"
            if name not in row:
                raise DataError(
                    f"{location} has no column {name!r} for the metadata: found {', '.join(row) or 'no columns'}. "
                    "Correct the row, or name another column."
                )
            try:
                values[name] = convert_value(row[name], kind)
            except (ValueError, TypeError) as error:
                value = f"{str(row[name])[:40]!r} ({type(row[name]).__name__})"
                raise DataError(
                    f"{location}: column {name!r} contains {value}, which is not of type {kind}. "
                    f"Correct the row, or name another type: --metadata {name}:TYPE."
                ) from error
        return values
