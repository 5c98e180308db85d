"""Temporary file of validated rows, so that a table can insert them in one transaction."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from promptembedder.errors import DataError
from promptembedder.search.table_schema import VectorRows, row_schema

__all__ = ["spool_to_disk"]


@contextmanager
def spool_to_disk(
    rows: VectorRows, folder: Path, *, table_metadata: Mapping[Any, Any]
) -> Iterator[pa.RecordBatchReader]:
    """Write the rows to an unnamed temporary file in `folder` and yield a reader of it.

    Errors are raised here, in the caller's thread: LanceDB would pull the rows in a thread of its own and replace the
    error message.

    Args:
        table_metadata: Metadata of the schema.

    Raises:
        DataError: If there is no row, a row is invalid, or a vector has another dimension than the first one.
        OSError: If the disk is full, or the folder is not writable.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        _write(rows, file, table_metadata)
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            yield reader


def _write(rows: VectorRows, file: IO[bytes], table_metadata: Mapping[Any, Any]) -> None:
    batches = rows.batches()
    first = next(batches, None)
    if first is None:
        raise DataError("there are no rows for the table. Give at least one.")
    dim = first.schema.field("vector").type.list_size
    schema = row_schema(dim, rows.metadata).with_metadata(table_metadata)
    with pa.ipc.new_stream(file, schema) as writer:
        for batch in chain([first], batches):
            width = batch.schema.field("vector").type.list_size
            if width != dim:
                raise DataError(
                    f"a vector has {width} dimensions, the first one has {dim}. Embed all rows with one model."
                )
            writer.write_batch(batch.cast(schema))
