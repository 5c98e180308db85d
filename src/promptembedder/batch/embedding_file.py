"""Parquet file of an embedding job: one row per text, one vector column per instruction."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.errors import DataError
from promptembedder.types import Float

__all__ = ["EmbeddingFile", "atomic_embedding_file", "column_names", "embedding_schema", "write_embedding_file"]


def column_names(instructions: int) -> list[str]:
    """Name the vector columns: `embedding` for one instruction, `embedding_0`, `embedding_1`, ... for several."""
    return ["embedding"] if instructions == 1 else [f"embedding_{i}" for i in range(instructions)]


def embedding_schema(
    *, instructions: int, dim: int, metadata: Mapping[str, str], passthrough: Sequence[pa.Field] = ()
) -> pa.Schema:
    """Build the schema: the id, one vector column per instruction, then the passthrough columns.

    Args:
        instructions: Number of instructions.
        dim: Dimension of the vectors.
        metadata: Metadata of the schema. Keys are stored with the prefix `promptembedder.`.
        passthrough: Fields of the passthrough columns.
    """
    vector = pa.list_(pa.float32(), dim)
    fields = [
        pa.field("id", pa.string()),
        *(pa.field(name, vector) for name in column_names(instructions)),
        *passthrough,
    ]
    return pa.schema(fields, metadata={f"promptembedder.{key}": value for key, value in metadata.items()})


class EmbeddingFile:
    """Appends rows of ids and vectors to an open Parquet file."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        """Wrap a writer whose schema was built by `embedding_schema`."""
        self._writer = writer

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
        finite = np.isfinite(vectors).all(axis=(0, 2))  # [texts]
        if not finite.all():
            raise DataError(
                f"the embedding of row {ids[int(finite.argmin())]!r} is not finite. Leave the row out, or load the "
                "backbone with dtype float32."
            )
        schema = self._writer.schema
        columns: list[pa.Array] = [pa.array(ids, type=pa.string())]
        for column in vectors:
            flat = pa.array(np.ascontiguousarray(column).reshape(-1), type=pa.float32())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, column.shape[-1]))
        first = len(columns)
        columns += [pa.array(values, type=schema.field(first + i).type) for i, values in enumerate(passthrough)]
        self._writer.write_batch(pa.record_batch(columns, schema=schema))


@contextmanager
def atomic_embedding_file(target: Path, schema: pa.Schema) -> Iterator[EmbeddingFile]:
    """Open a new file that replaces `target` atomically when the block succeeds. A failure leaves `target` unchanged.

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
        with write_embedding_file(scratch, schema) as file:
            yield file
        scratch.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}. Free the disk, or name another output.") from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def write_embedding_file(path: Path, schema: pa.Schema) -> Iterator[EmbeddingFile]:
    """Open a new file that is flushed to the disk when the block succeeds.

    Raises:
        OSError: If the file cannot be written.
    """
    with path.open("wb") as file:
        # no dictionary encoding: neither ids nor vectors repeat
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            yield EmbeddingFile(writer)
        file.flush()
        os.fsync(file.fileno())
