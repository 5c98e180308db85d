"""Output file of an embedding job, Parquet, JSONL or NPY: its rows, columns and the format of its vectors."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.data import COLUMN_KINDS, convert_value
from promptembedder.errors import ConfigError, DataError
from promptembedder.types import Float

__all__ = [
    "FILE_ENDINGS",
    "WHOLE_VECTORS",
    "EmbeddingFile",
    "PassthroughColumn",
    "VectorFormat",
    "atomic_embedding_file",
    "column_names",
    "embedding_schema",
    "write_embedding_file",
]

PRECISIONS = ("float32", "int8", "binary")
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, kw_only=True)
class VectorFormat:
    """Dimensions and precision that vectors are reduced to before they are stored or printed.

    Attributes:
        dimensions: Number of first dimensions to keep. Vectors are normalized again. If None, all.
        precision: `float32`; `int8`, each vector scaled so that its largest value is 127 or -127, which leaves cosines
            unchanged up to rounding; or `binary`, one bit per dimension, packed into bytes as in sentence-transformers.
    """

    dimensions: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise ConfigError(f"dimensions must be at least 1, got {self.dimensions}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")

    def check(self, dim: int) -> None:
        """Check that vectors with `dim` dimensions can be reduced.

        Raises:
            ConfigError: If they have fewer dimensions, or if their number is not a multiple of 8 for `binary`.
        """
        kept = self.dimensions or dim
        if kept > dim:
            raise ConfigError(f"dimensions must be between 1 and {dim}, got {kept}.")
        if self.precision == "binary" and kept % 8:
            raise ConfigError(
                f"binary vectors need a multiple of 8 dimensions, got {kept}. Set dimensions={kept // 8 * 8}."
            )

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of a stored number."""
        return pa.float32() if self.precision == "float32" else pa.int8()

    def stored_width(self, dim: int) -> int:
        """Return how many numbers are stored for a vector with `dim` dimensions."""
        kept = self.dimensions or dim
        return kept // 8 if self.precision == "binary" else kept

    def reduce(self, vectors: np.ndarray) -> np.ndarray:
        """Reduce float32 vectors along the last axis."""
        if self.dimensions is not None and self.dimensions < vectors.shape[-1]:
            vectors = vectors[..., : self.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)
        if self.precision == "int8":
            largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), _TINY)
            return np.rint(127 * vectors / largest).astype(np.int8)
        if self.precision == "binary":
            return (np.packbits(vectors > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)
        return vectors


WHOLE_VECTORS = VectorFormat()


@dataclass(frozen=True)
class PassthroughColumn:
    """A column that is copied to the output. A row without a value gets null.

    Attributes:
        name: Name of the column in the corpus and in the output.
        type: Type of the values: str, int, float or bool.
    """

    name: str
    type: str = "str"

    @classmethod
    def parse(cls, option: str) -> "PassthroughColumn":
        """Parse `NAME` or `NAME:TYPE`.

        Raises:
            ConfigError: If the type is unknown, or the name is blank or that of an output column.
        """
        name, colon, kind = option.rpartition(":")
        name, kind = (name, kind) if colon else (kind, "str")
        if kind not in COLUMN_KINDS:
            raise ConfigError(
                f"the column {option!r} has the unknown type {kind!r}. Use one of {', '.join(COLUMN_KINDS)}."
            )
        if not name.strip():
            raise ConfigError(f"the column {option!r} has no name. Write it as NAME or NAME:TYPE.")
        if name == "id" or name.startswith("embedding"):
            raise ConfigError(f"the column {name!r} is always written. Leave it out.")
        return cls(name, kind)

    @property
    def field(self) -> pa.Field:
        """Field in the schema of the output."""
        return pa.field(self.name, COLUMN_KINDS[self.type])

    def value(self, row: dict[str, Any], location: str) -> str | int | float | bool | None:
        """Convert the row's value to the type of the column. Numbers may be strings, as in CSV.

        Raises:
            DataError: If the value has another type. The message begins with `location`.
        """
        value = row.get(self.name)
        try:
            return convert_value(value, self.type)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{location}: column {self.name!r} contains {str(value)[:40]!r} ({type(value).__name__}), not "
                f"{self.type}. Correct or drop the row, or give the column another type."
            ) from error


def column_names(instructions: int) -> list[str]:
    """Name the vector columns: `embedding` for one instruction, `embedding_0`, `embedding_1`, ... for several."""
    return ["embedding"] if instructions == 1 else [f"embedding_{i}" for i in range(instructions)]


def embedding_schema(
    *,
    instructions: int,
    dim: int,
    metadata: Mapping[str, str],
    passthrough: Sequence[pa.Field] = (),
    vector_format: VectorFormat = WHOLE_VECTORS,
) -> pa.Schema:
    """Build the schema: the id, one vector column per instruction, then the passthrough columns.

    Args:
        instructions: Number of instructions.
        dim: Dimension of the vectors.
        metadata: Metadata of the schema. Keys are stored with the prefix `promptembedder.`.
        passthrough: Fields of the passthrough columns.
        vector_format: Dimensions and precision of the stored vectors.
    """
    vector = pa.list_(vector_format.value_type, vector_format.stored_width(dim))
    fields = [
        pa.field("id", pa.string()),
        *(pa.field(name, vector) for name in column_names(instructions)),
        *passthrough,
    ]
    return pa.schema(fields, metadata={f"promptembedder.{key}": value for key, value in metadata.items()})


class EmbeddingFile(ABC):
    """Open file that rows of ids and vectors are appended to."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, vector_format: VectorFormat) -> None:
        """Write to `file`, with a schema that `embedding_schema` built for the same format."""
        self._file, self._schema, self._format = file, schema, vector_format

    def append(
        self,
        ids: Sequence[str],
        vectors: Float[np.ndarray, "instructions texts dim"],
        passthrough: Sequence[Sequence[Any]] = (),
    ) -> None:
        """Append rows with float32 vectors, which are reduced to the format of the file.

        Args:
            passthrough: Values of each passthrough column. Only a Parquet file has such columns.

        Raises:
            DataError: If a vector contains NaN or inf. Nothing is then written.
        """
        finite = np.isfinite(vectors).all(axis=(0, 2))  # [texts]
        if not finite.all():
            raise DataError(
                f"the embedding of row {ids[int(finite.argmin())]!r} is not finite. Leave the row out, or load the "
                "backbone with dtype float32."
            )
        self._write(ids, self._format.reduce(vectors), passthrough)

    @abstractmethod
    def _write(self, ids: Sequence[str], reduced: np.ndarray, passthrough: Sequence[Sequence[Any]]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Complete the content of the file, which stays open."""


class _ParquetFile(EmbeddingFile):
    """Appends row groups to a Parquet file."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, vector_format: VectorFormat) -> None:
        super().__init__(file, schema, vector_format)
        # no dictionary encoding: neither ids nor vectors repeat
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False)

    def _write(self, ids: Sequence[str], reduced: np.ndarray, passthrough: Sequence[Sequence[Any]]) -> None:
        columns: list[pa.Array] = [pa.array(ids, type=pa.string())]
        for column in reduced:
            flat = pa.array(np.ascontiguousarray(column).reshape(-1), type=self._format.value_type)
            columns.append(pa.FixedSizeListArray.from_arrays(flat, column.shape[-1]))
        types = self._schema.types[len(columns) :]
        columns += [pa.array(values, type=type_) for values, type_ in zip(passthrough, types, strict=True)]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _JsonlFile(EmbeddingFile):
    """Appends one JSON object per row: id and vectors by column name."""

    def _write(self, ids: Sequence[str], reduced: np.ndarray, passthrough: Sequence[Sequence[Any]]) -> None:
        for row, row_id in enumerate(ids):
            vectors = {name: column[row].tolist() for name, column in zip(self._schema.names[1:], reduced, strict=True)}
            self._file.write(json.dumps({"id": row_id, **vectors}, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class _NpyFile(EmbeddingFile):
    """Appends vectors to an array of shape [texts dim], or [texts instructions dim] for several instructions."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, vector_format: VectorFormat) -> None:
        super().__init__(file, schema, vector_format)
        self._rows = 0
        self.close()  # the header, before any row

    def _write(self, ids: Sequence[str], reduced: np.ndarray, passthrough: Sequence[Sequence[Any]]) -> None:
        self._file.write(np.ascontiguousarray(reduced.swapaxes(0, 1)).tobytes())
        self._rows += len(ids)

    def close(self) -> None:
        instructions, width = len(self._schema.names) - 1, self._schema.field(1).type.list_size
        row_shape = (width,) if instructions == 1 else (instructions, width)
        dtype = np.dtype(np.float32 if self._format.precision == "float32" else np.int8)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (self._rows, *row_shape)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy leaves room for the number of rows


_FILE_CLASSES: Mapping[str, type[EmbeddingFile]] = {".parquet": _ParquetFile, ".jsonl": _JsonlFile, ".npy": _NpyFile}
FILE_ENDINGS = tuple(_FILE_CLASSES)


@contextmanager
def atomic_embedding_file(
    target: Path, schema: pa.Schema, vector_format: VectorFormat = WHOLE_VECTORS
) -> Iterator[EmbeddingFile]:
    """Open a new file that replaces `target` atomically when the block succeeds. A failure leaves `target` unchanged.

    The ending of `target` is one of `FILE_ENDINGS` and determines the file format.

    Raises:
        DataError: If the folder or the disk is not writable.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch()
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}. Name another output.") from error
    try:
        with write_embedding_file(scratch, schema, vector_format, ending=target.suffix) as file:
            yield file
        scratch.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}. Free the disk, or name another output.") from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def write_embedding_file(
    path: Path, schema: pa.Schema, vector_format: VectorFormat = WHOLE_VECTORS, *, ending: str = ".parquet"
) -> Iterator[EmbeddingFile]:
    """Open a new file in the format of an ending. It is flushed to the disk when the block succeeds.

    Raises:
        OSError: If the file cannot be written.
    """
    with path.open("wb") as file:
        with closing(_FILE_CLASSES[ending](file, schema, vector_format)) as rows:
            yield rows
        file.flush()
        os.fsync(file.fileno())
