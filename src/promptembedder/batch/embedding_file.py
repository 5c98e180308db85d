"""The Parquet file of an embedding job: a row for each text, a column of vectors for each instruction."""

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

__all__ = ["EmbeddingFile", "column_names", "embedding_schema", "whole_embedding_file", "written_embedding_file"]


def column_names(instructions: int) -> list[str]:
    """`embedding` for one instruction; `embedding_0`, `embedding_1`, ... for several."""
    return ["embedding"] if instructions == 1 else [f"embedding_{i}" for i in range(instructions)]


def embedding_schema(
    *, instructions: int, dim: int, metadata: Mapping[str, str], kept: Sequence[pa.Field] = ()
) -> pa.Schema:
    """An id, a column of vectors for each instruction, then the columns that are carried along.

    Args:
        metadata: Each key is stored after `promptembedder.`.
    """
    vector = pa.list_(pa.float32(), dim)
    fields = [pa.field("id", pa.string()), *(pa.field(name, vector) for name in column_names(instructions)), *kept]
    return pa.schema(fields, metadata={f"promptembedder.{key}": value for key, value in metadata.items()})


class EmbeddingFile:
    """Appends rows of ids and vectors to an open Parquet file."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        """Write with `writer`, whose schema is one of `embedding_schema`."""
        self._writer = writer

    def append(
        self,
        ids: Sequence[str],
        vectors: Float[np.ndarray, "instructions texts dim"],
        kept: Sequence[Sequence[Any]] = (),
    ) -> None:
        """One row group more.

        Args:
            kept: Values of each column that is carried along.

        Raises:
            DataError: A vector holds NaN or inf; nothing of the group is written.
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
        columns += [pa.array(values, type=schema.field(first + i).type) for i, values in enumerate(kept)]
        self._writer.write_batch(pa.record_batch(columns, schema=schema))


@contextmanager
def whole_embedding_file(target: Path, schema: pa.Schema) -> Iterator[EmbeddingFile]:
    """A file that takes the place of `target` when the block ends well; nothing changes when it fails.

    Raises:
        DataError: The folder or the disk cannot be written to.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch()
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}. Name another output.") from error
    try:
        with written_embedding_file(scratch, schema) as file:
            yield file
        scratch.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}. Free the disk, or name another output.") from error
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def written_embedding_file(path: Path, schema: pa.Schema) -> Iterator[EmbeddingFile]:
    """A new file, safe on the disk when the block ends well.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("wb") as file:
        # no dictionaries: neither ids nor vectors repeat
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            yield EmbeddingFile(writer)
        file.flush()
        os.fsync(file.fileno())
