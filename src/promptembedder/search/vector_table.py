"""Vector table on disk in LanceDB's format: creation, insertion, deletion, filters, exact and approximate search."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from promptembedder.data import COLUMN_KINDS
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.search.table_schema import (
    FIXED_COLUMNS,
    TableMetadata,
    VectorRows,
    check_metadata,
    encode_table_metadata,
    read_schema_metadata,
    row_schema,
)
from promptembedder.storage import atomic_directory, lock_directory
from promptembedder.types import Float

__all__ = [
    "EXACT_BELOW",
    "TableHit",
    "VectorTable",
    "check_target",
    "check_unique",
    "create_table",
    "first_repeated",
]

EXACT_BELOW = 10_000  # rows: exact search takes about 15 ms up to here, see docs/search.md
_TABLE = "vectors"  # name of the table in the LanceDB database
_INDEX = "vector_idx"
_REQUIRED_METADATA = ("model", "model_sha256", "reader", "instruction")
_LANCE_ERRORS = (ValueError, RuntimeError, OSError)
_QUOTED = re.compile(r"'[^']*'")
_LANCE_SOURCE = re.compile(r", /\S+:\d+:\d+$")  # LanceDB's source location at the end of a message
# measurements: docs/search.md. Without refining, scores are those of vectors quantized to 8 bits
_EF = 800
_REFINE_FACTOR = 4
_Ids = Callable[[], Iterable[Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class TableHit:
    """A search result: `rank` counts from 1, `score` is the exact cosine similarity, also after approximate search."""

    rank: int
    id: str
    text: str | None
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


class VectorTable:
    """Table of ids, vectors of length 1, texts and metadata columns, with the model and instruction of the vectors.

    The folder is a LanceDB database with one table, `vectors`. Each change is an atomic transaction, even if the
    process is killed.
    """

    def __init__(self, folder: Path) -> None:
        """Open the table in `folder`.

        Raises:
            DataError: If there is no table, or `create_table` did not write it.
            ImportError: If LanceDB is not installed.
        """
        lancedb = require("lancedb", extra="search")
        if not _is_table(folder):  # LanceDB would create the folder
            raise DataError(f"{folder} is not a table. Create one: promptembedder index SOURCE --table {folder}")
        try:
            self._table = lancedb.connect(folder).open_table(_TABLE)
            schema = self._table.schema
        except _LANCE_ERRORS as error:
            raise DataError(f"the table in {folder} cannot be read: {_reason(error)}. Create it again.") from error
        known = read_schema_metadata(schema)
        if not known.keys() >= {*_REQUIRED_METADATA, "exact_below"}:
            raise DataError(f"the table in {folder} has no record of its model. Create it with promptembedder index.")
        kinds = {type_: kind for kind, type_ in COLUMN_KINDS.items()}
        self.folder = folder
        self.table_metadata = TableMetadata(
            **{key: known[key] for key in _REQUIRED_METADATA}, manifest_sha256=known.get("manifest_sha256", "")
        )
        self.exact_below = int(known["exact_below"])
        self.dim = int(schema.field("vector").type.list_size)
        self.metadata = {one.name: kinds[one.type] for one in schema if one.name not in FIXED_COLUMNS}
        self.index_type = self._index_type()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._table.count_rows())

    def add(self, rows: VectorRows) -> int:
        """Append the rows, update the index and return the number of added rows.

        Raises:
            DataError: If the rows have another model, instruction, dimension or metadata schema, an id is repeated or
                already in the table, or a row is invalid. The table is then unchanged.
            ConfigError: If another process is changing the table.
        """
        self._check_fit(rows)
        with _write_errors(self.folder), lock_directory(self.folder):
            self._table.checkout_latest()
            before = self.rows
            check_unique(rows.ids, present=self._ids)
            with _spool_to_disk(rows, self.folder.parent, table_metadata=self._table.schema.metadata) as reader:
                width = reader.schema.field("vector").type.list_size
                if width != self.dim:
                    raise DataError(f"the rows have {width} dimensions, the table has {self.dim}. Use one model.")
                with self._restore_on_failure():
                    with _lance_writes():
                        self._table.add(reader)
                    self.update_index()
        return self.rows - before

    def delete(self, where: str) -> int:
        """Delete the rows that match an SQL condition and return their number.

        Raises:
            DataError: If the filter is blank, or names a column that does not exist.
            ConfigError: If another process is changing the table.
        """
        with _write_errors(self.folder), lock_directory(self.folder), self._filter_errors(where):
            self._table.checkout_latest()
            before = self.rows
            self._table.delete(where)
        return before - self.rows

    def search(
        self, query: Float[np.ndarray, " dim"], *, k: int, where: str | None = None, exact: bool = False
    ) -> list[TableHit]:
        """Find the `k` nearest rows by cosine similarity. Ties are ordered by row.

        Args:
            where: SQL condition that hits must match: `year >= 2000 AND lang = 'en'`.
            exact: Compare all rows, even if there is an approximate index.

        Raises:
            ConfigError: If `k` is not positive.
            DataError: If the query has another dimension than the table, is not finite or is zero, or the filter is
                invalid.
        """
        if k < 1:
            raise ConfigError(f"the number of hits k must be at least 1, got {k}. Try 5.")
        with self._filter_errors(where):
            rows = self._nearest(self._l2_normalize(query), k, where, exact).to_pylist()
        rows.sort(key=lambda row: (row["_distance"], row["_rowid"]))
        return [
            TableHit(
                rank=rank,
                id=row["id"],
                text=row["text"],
                score=1 - row["_distance"],
                metadata={name: row[name] for name in self.metadata},
            )
            for rank, row in enumerate(rows, start=1)
        ]

    def check_filter(self, where: str | None) -> int:
        """Count the rows that match the filter. If None, count all rows.

        Raises:
            DataError: If the filter is blank or invalid, or names a column that does not exist.
        """
        with self._filter_errors(where):
            return int(self._table.count_rows(where))

    def sample(self, count: int, *, seed: int) -> tuple[list[str], Float[np.ndarray, "docs dim"]]:
        """Draw ids and vectors of random rows without replacement. Return all rows if there are fewer."""
        rows = self.rows
        drawn = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
        sampled = self._table.take_offsets(sorted(drawn.tolist())).select(["id", "vector"]).to_arrow()
        flat = sampled["vector"].combine_chunks().flatten().to_numpy()
        return sampled["id"].to_pylist(), flat.reshape(len(sampled), self.dim)

    def update_index(self) -> None:
        """Create the approximate index, or add missing rows to it. Do nothing for a small table."""
        if self.rows < self.exact_below:
            return
        with _lance_writes():
            if self.index_type is None:
                index = require("lancedb.index", extra="search")
                config = index.HnswSq(distance_type="cosine", num_partitions=1)
                self._table.create_index("vector", config=config, name=_INDEX)
                self.index_type = self._index_type()
            else:
                self._table.optimize()

    @contextmanager
    def _restore_on_failure(self) -> Iterator[None]:
        """Restore the table if the block fails: an interrupted index build would leave the added rows behind."""
        version, index_type = self._table.version, self.index_type
        try:
            yield
        except BaseException:
            self._table.restore(version)
            self.index_type = index_type
            raise

    def _index_type(self) -> str | None:
        stats = self._table.index_stats(_INDEX)
        return None if stats is None else str(stats.index_type)

    def _nearest(self, unit: Float[np.ndarray, " dim"], k: int, where: str | None, exact: bool) -> pa.Table:
        request = self._table.search(unit, vector_column_name="vector").distance_type("cosine").limit(k)
        if where is not None:
            request = request.where(where, prefilter=True)
        if self.index_type is not None:
            ef = max(_EF, _REFINE_FACTOR * k)  # LanceDB's minimum
            request = request.bypass_vector_index() if exact else request.ef(ef).refine_factor(_REFINE_FACTOR)
        return request.select(["id", "text", *self.metadata, "_distance"]).with_row_id(True).to_arrow()

    def _l2_normalize(self, query: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " dim"]:
        if len(query) != self.dim:
            raise DataError(
                f"the query has {len(query)} dimensions, the table has {self.dim}. Embed both with the same model."
            )
        length = np.linalg.norm(query)
        if not np.isfinite(length) or length == 0:
            raise DataError(f"the vector of the query has length {length}. Load the backbone with dtype float32.")
        return (query / length).astype(np.float32)

    def _ids(self) -> Iterator[Sequence[str]]:
        for batch in self._table.search().select(["id"]).to_batches():
            yield batch["id"].to_pylist()

    def _check_fit(self, rows: VectorRows) -> None:
        self.table_metadata.check_model(rows.table_metadata)
        if rows.table_metadata.instruction != self.table_metadata.instruction:
            raise DataError(
                f"the rows have the instruction {rows.table_metadata.instruction!r}, the table has "
                f"{self.table_metadata.instruction!r}. Embed the rows under the table's instruction."
            )
        if dict(rows.metadata) != self.metadata:
            raise DataError(
                f"the rows have the metadata {_format(rows.metadata)}, the table has {_format(self.metadata)}. "
                "Name the same columns and types."
            )

    @contextmanager
    def _filter_errors(self, where: str | None) -> Iterator[None]:
        """Convert LanceDB's errors to a DataError of one line. Reject `; ...`, which LanceDB silently ignores."""
        if where is not None and (not where.strip() or ";" in _QUOTED.sub("", where)):
            raise DataError(f"{where!r} is not a filter. Write one condition: year >= 2000 AND lang = 'en'")
        try:
            yield
        except DataError:
            raise
        except _LANCE_ERRORS as error:
            if where is None:
                raise DataError(
                    f"the table in {self.folder} cannot be read: {_reason(error)}. Create it again."
                ) from error
            columns = ", ".join(("id", "text", *self.metadata))
            raise DataError(f"cannot filter by {where!r}: {_reason(error)}. Columns: {columns}.") from error


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
    with _write_errors(folder), lock_directory(folder):
        check_target(folder, overwrite=overwrite)
        check_unique(rows.ids)
        encoded = encode_table_metadata(rows.table_metadata, exact_below=exact_below)
        with _spool_to_disk(rows, folder.parent, table_metadata=encoded) as reader, atomic_directory(folder) as scratch:
            with _lance_writes():
                lancedb.connect(scratch).create_table(_TABLE, data=reader, schema=reader.schema)
            VectorTable(scratch).update_index()
            if _is_table(folder):
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
    if _is_table(folder):
        if not overwrite:
            raise DataError(f"{folder} is a table already. Use --add or --overwrite, or name another folder.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} contains files that are not a table. Name another folder.")


def check_unique(ids: _Ids, *, present: _Ids = tuple) -> None:
    """Check that no id is repeated or in `present`.

    Raises:
        DataError: If an id is. The message names the first one.
    """
    repeated = first_repeated(lambda: chain(present(), ids()))
    if repeated is not None:
        problem = "in the table already" if any(repeated in batch for batch in present()) else "repeated"
        raise DataError(f"the id {repeated!r} is {problem}. Rename the row, leave it out, or delete the other one.")


def first_repeated(batches: _Ids) -> str | None:
    """Find the first repeated id. Return None if all ids are distinct.

    Memory is one 8-byte hash per id. If hashes collide, a second pass compares the ids with these hashes themselves.
    """
    parts = [np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)) for ids in batches()]
    hashes = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    hashes.sort()
    repeated_hashes = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated_hashes:
        return None
    seen = set[str]()
    for ids in batches():
        for one in ids:
            if hash(one) in repeated_hashes:
                if one in seen:
                    return one
                seen.add(one)
    return None


@contextmanager
def _spool_to_disk(
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
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            yield reader


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError to a DataError of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error}. Free the disk, or name another table.") from error


@contextmanager
def _lance_writes() -> Iterator[None]:
    """Convert LanceDB's RuntimeError, which means a disk error while it writes, to an OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def _is_table(folder: Path) -> bool:
    """Return True if the folder contains a table."""
    return (folder / f"{_TABLE}.lance").is_dir()


def _format(metadata: Mapping[str, str]) -> str:
    return ", ".join(f"{name}:{kind}" for name, kind in metadata.items()) or "none"


def _reason(error: Exception) -> str:
    """Extract the first line of a LanceDB message, without its source location and prefix."""
    line = (str(error).splitlines() or [""])[0]
    return _LANCE_SOURCE.sub("", line).removeprefix("Invalid input, ").rstrip(".")
