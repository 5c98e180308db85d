"""Atomic creation of a vector table."""

import os
import shutil
from pathlib import Path

from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.search.spooled_rows import spool_to_disk
from promptembedder.search.table_schema import VectorRows, check_metadata, encode_table_metadata
from promptembedder.search.unique_ids import check_unique
from promptembedder.search.vector_table import TABLE, VectorTable, is_table, lance_writes, write_errors
from promptembedder.storage import atomic_directory, lock_directory

__all__ = ["EXACT_BELOW", "check_target", "create_table"]

EXACT_BELOW = 10_000  # rows: exact search takes about 15 ms up to here, see docs/search.md


def create_table(
    folder: Path, rows: VectorRows, *, exact_below: int = EXACT_BELOW, overwrite: bool = False
) -> VectorTable:
    """Create a table in `folder` atomically: after a failure there is no partial table.

    Args:
        exact_below: Number of rows from which the table has an approximate index. Smaller tables are searched exactly.
        overwrite: Replace an existing table.

    Raises:
        DataError: As in `check_target`; or if an id is repeated, a row is invalid, or the disk is not writable.
        ConfigError: As in `check_metadata`; or if `exact_below` is not positive, or another process writes the table.
        ImportError: If LanceDB is not installed.
    """
    lancedb = require("lancedb", extra="search")
    if exact_below < 1:
        raise ConfigError(f"exact_below must be at least 1, got {exact_below}. Leave it out for {EXACT_BELOW}.")
    check_metadata(rows.metadata)
    replaced = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    with write_errors(folder), lock_directory(folder):
        check_target(folder, overwrite=overwrite)
        check_unique(rows.ids)
        encoded = encode_table_metadata(rows.table_metadata, exact_below=exact_below)
        with spool_to_disk(rows, folder.parent, table_metadata=encoded) as reader, atomic_directory(folder) as scratch:
            with lance_writes():
                lancedb.connect(scratch).create_table(TABLE, data=reader, schema=reader.schema)
            VectorTable(scratch).update_index()
            if is_table(folder):
                folder.rename(replaced)  # after the new table is complete, in one step
        shutil.rmtree(replaced, ignore_errors=True)
    return VectorTable(folder)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Check that `create_table` can write to this folder, before any other work.

    Raises:
        DataError: If the folder is a file, a table that must not be overwritten, or contains other files.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Name a folder for the table.")
    if is_table(folder):
        if not overwrite:
            raise DataError(f"{folder} is a table already. Use --add or --overwrite, or name another folder.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} contains files that are not a table. Name another folder.")
