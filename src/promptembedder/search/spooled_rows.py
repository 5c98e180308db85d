"""Rows in a scratch file, all of them looked at, so that a table can take them in one transaction."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from promptembedder.errors import DataError
from promptembedder.search.table_schema import VectorRows, row_schema

__all__ = ["spooled"]


@contextmanager
def spooled(rows: VectorRows, folder: Path, *, facts: Mapping[Any, Any]) -> Iterator[pa.RecordBatchReader]:
    """The rows as a stream, from a file in `folder` that has no name and ends with the process.

    What fails, fails here, where the caller's own thread reads and embeds: a table that pulled the rows itself would
    do so in a thread of LanceDB's, and tell of an error in words of its own.

    Args:
        facts: For the metadata of the schema.

    Raises:
        DataError: There is no row, or one cannot be used or is wider than those before it.
        OSError: The disk is full, or the folder cannot be written to.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        _write(rows, file, facts)
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            yield reader


def _write(rows: VectorRows, file: IO[bytes], facts: Mapping[Any, Any]) -> None:
    batches = rows.batches()
    first = next(batches, None)
    if first is None:
        raise DataError("there are no rows for the table. Give at least one.")
    dim = first.schema.field("vector").type.list_size
    schema = row_schema(dim, rows.metadata).with_metadata(facts)
    with pa.ipc.new_stream(file, schema) as writer:
        for batch in chain([first], batches):
            width = batch.schema.field("vector").type.list_size
            if width != dim:
                raise DataError(f"a vector has {width} dimensions, the first one has {dim}. Embed both with one model.")
            writer.write_batch(batch.cast(schema))
