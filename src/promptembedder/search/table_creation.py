"""A new table of vectors, whole or not at all."""

import os
import shutil
from pathlib import Path

from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.search.spooled_rows import spooled
from promptembedder.search.table_schema import VectorRows, check_metadata, schema_facts
from promptembedder.search.unique_ids import check_unique
from promptembedder.search.vector_table import TABLE, VectorTable, is_table, lance_writes, write_errors
from promptembedder.storage import owned_folder, whole_folder

__all__ = ["EXACT_BELOW", "check_free", "create_table"]

EXACT_BELOW = 10_000  # rows: as long as comparing them all takes some 15 ms, docs/search.md


def create_table(
    folder: Path, rows: VectorRows, *, exact_below: int = EXACT_BELOW, overwrite: bool = False
) -> VectorTable:
    """A new table in `folder`, which appears whole or not at all.

    Args:
        exact_below: From so many rows on there is an approximate index; fewer are compared one by one.
        overwrite: Take the place of a table that is there.

    Raises:
        DataError: As in `check_free`; an id comes twice, a row cannot be used, or the disk cannot be written to.
        ConfigError: As in `check_metadata`; `exact_below` is not positive; or another process is writing the table.
        ImportError: LanceDB is not installed.
    """
    lancedb = require("lancedb", extra="search")
    if exact_below < 1:
        raise ConfigError(f"exact_below must be at least 1, got {exact_below}. Leave it out for {EXACT_BELOW}.")
    check_metadata(rows.metadata)
    aside = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    with write_errors(folder), owned_folder(folder):
        check_free(folder, overwrite=overwrite)
        check_unique(rows.ids)
        facts = schema_facts(rows.facts, exact_below=exact_below)
        with spooled(rows, folder.parent, facts=facts) as reader, whole_folder(folder) as scratch:
            with lance_writes():
                lancedb.connect(scratch).create_table(TABLE, data=reader, schema=reader.schema)
            VectorTable(scratch).update_index()
            if is_table(folder):
                folder.rename(aside)  # only now, and in one step
        shutil.rmtree(aside, ignore_errors=True)
    return VectorTable(folder)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise now what `create_table` would raise for its folder.

    Raises:
        DataError: It is a table and not to be overwritten, is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Name a folder for the table.")
    if is_table(folder):
        if not overwrite:
            raise DataError(f"{folder} is a table already. Say --add or --overwrite, or name another folder.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} holds other things than a table. Name another folder.")
