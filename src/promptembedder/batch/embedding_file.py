"""Output file of an embedding job, Parquet, JSONL or NPY: one row per text, one vector column per instruction."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.batch.vector_format import WHOLE_VECTORS, VectorFormat
from promptembedder.errors import DataError
from promptembedder.types import Float

__all__ = [
    "FILE_ENDINGS",
    "EmbeddingFile",
    "VectorFile",
    "atomic_embedding_file",
    "column_names",
    "embedding_schema",
    "write_embedding_file",
]


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


@runtime_checkable
class VectorFile(Protocol):
    """Open file that rows of ids and vectors are appended to."""

    def append(self, ids: Sequence[str], vectors: Float[np.ndarray, "instructions texts dim"]) -> None:
        """Append float32 vectors, reduced to the format of the file.

        Raises:
            DataError: If a vector contains NaN or inf. Nothing is then written.
        """
        ...


class EmbeddingFile:
    """Appends rows of ids and vectors to an open Parquet file."""

    def __init__(self, writer: pq.ParquetWriter, vector_format: VectorFormat) -> None:
        """Wrap a writer whose schema was built by `embedding_schema` for the same format."""
        self._writer, self._format = writer, vector_format

    def append(
        self,
        ids: Sequence[str],
        vectors: Float[np.ndarray, "instructions texts dim"],
        passthrough: Sequence[Sequence[Any]] = (),
    ) -> None:
        """Append one row group.

        Args:
            ids: Id of each row.
            vectors: Vectors of each instruction and row.
            passthrough: Values of each passthrough column.

        Raises:
            DataError: If a vector contains NaN or inf. The row group is then not written.
        """
        _check_finite(ids, vectors)
        schema = self._writer.schema
        columns: list[pa.Array] = [pa.array(ids, type=pa.string())]
        for column in self._format.reduce(vectors):
            flat = pa.array(np.ascontiguousarray(column).reshape(-1), type=self._format.value_type)
            columns.append(pa.FixedSizeListArray.from_arrays(flat, column.shape[-1]))
        first = len(columns)
        columns += [pa.array(values, type=schema.field(first + i).type) for i, values in enumerate(passthrough)]
        self._writer.write_batch(pa.record_batch(columns, schema=schema))


class _JsonlFile:
    """Appends one JSON object per row: id and vectors by column name."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], vector_format: VectorFormat) -> None:
        self._file, self._columns, self._format = file, columns, vector_format

    def append(self, ids: Sequence[str], vectors: Float[np.ndarray, "instructions texts dim"]) -> None:
        _check_finite(ids, vectors)
        reduced = self._format.reduce(vectors)
        for row, row_id in enumerate(ids):
            content = {"id": row_id, **{name: reduced[i, row].tolist() for i, name in enumerate(self._columns)}}
            self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")


class _NpyFile:
    """Appends vectors to an array of shape [texts dim], or [texts instructions dim] for several instructions."""

    def __init__(self, file: BinaryIO, instructions: int, width: int, vector_format: VectorFormat) -> None:
        self._file, self._format, self._rows = file, vector_format, 0
        self._row_shape = (width,) if instructions == 1 else (instructions, width)
        self._write_header()

    def append(self, ids: Sequence[str], vectors: Float[np.ndarray, "instructions texts dim"]) -> None:
        _check_finite(ids, vectors)
        self._file.write(np.ascontiguousarray(self._format.reduce(vectors).swapaxes(0, 1)).tobytes())
        self._rows += len(ids)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()  # of the same length: numpy leaves room for the number of rows

    def _write_header(self) -> None:
        dtype = np.dtype(np.float32 if self._format.precision == "float32" else np.int8)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (self._rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _check_finite(ids: Sequence[str], vectors: Float[np.ndarray, "instructions texts dim"]) -> None:
    finite = np.isfinite(vectors).all(axis=(0, 2))  # [texts]
    if not finite.all():
        raise DataError(
            f"the embedding of row {ids[int(finite.argmin())]!r} is not finite. Leave the row out, or load the "
            "backbone with dtype float32."
        )


@contextmanager
def atomic_embedding_file(
    target: Path, schema: pa.Schema, vector_format: VectorFormat = WHOLE_VECTORS
) -> Iterator[VectorFile]:
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
        with _WRITERS[target.suffix](scratch, schema, vector_format) as file:
            yield file
        scratch.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}. Free the disk, or name another output.") from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def write_embedding_file(
    path: Path, schema: pa.Schema, vector_format: VectorFormat = WHOLE_VECTORS
) -> Iterator[EmbeddingFile]:
    """Open a new Parquet file that is flushed to the disk when the block succeeds.

    Raises:
        OSError: If the file cannot be written.
    """
    # no dictionary encoding: neither ids nor vectors repeat
    with (
        _flushed(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        yield EmbeddingFile(writer, vector_format)


@contextmanager
def _write_jsonl(path: Path, schema: pa.Schema, vector_format: VectorFormat) -> Iterator[VectorFile]:
    with _flushed(path) as file:
        yield _JsonlFile(file, schema.names[1:], vector_format)


@contextmanager
def _write_npy(path: Path, schema: pa.Schema, vector_format: VectorFormat) -> Iterator[VectorFile]:
    with _flushed(path) as file:
        array = _NpyFile(file, len(schema.names) - 1, schema.field(1).type.list_size, vector_format)
        yield array
        array.finish()


@contextmanager
def _flushed(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that is flushed to the disk when the block succeeds."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


_WRITERS: Mapping[str, Callable[[Path, pa.Schema, VectorFormat], AbstractContextManager[VectorFile]]] = {
    ".parquet": write_embedding_file,
    ".jsonl": _write_jsonl,
    ".npy": _write_npy,
}
FILE_ENDINGS = tuple(_WRITERS)
