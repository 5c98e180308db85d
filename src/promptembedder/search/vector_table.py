"""Vector table on disk in LanceDB's format: insertion, deletion, filters, exact and approximate search."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from promptembedder.data import COLUMN_KINDS
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.search.spooled_rows import spool_to_disk
from promptembedder.search.table_schema import FIXED_COLUMNS, TableMetadata, VectorRows, read_schema_metadata
from promptembedder.search.unique_ids import check_unique
from promptembedder.storage import lock_directory
from promptembedder.types import Float

__all__ = ["TABLE", "TableHit", "VectorTable", "is_table", "lance_writes", "write_errors"]

TABLE = "vectors"  # name of the table in the LanceDB database

_INDEX = "vector_idx"
_REQUIRED_METADATA = ("model", "model_sha256", "reader", "instruction")
_LANCE_ERRORS = (ValueError, RuntimeError, OSError)
_QUOTED = re.compile(r"'[^']*'")
_LANCE_SOURCE = re.compile(r", /\S+:\d+:\d+$")  # LanceDB's source location at the end of a message
# measurements: docs/search.md. Without refining, scores are those of vectors quantized to 8 bits
_EF = 800
_REFINE_FACTOR = 4


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
        if not is_table(folder):  # LanceDB would create the folder
            raise DataError(f"{folder} is not a table. Create one: promptembedder index SOURCE --table {folder}")
        try:
            self._table = lancedb.connect(folder).open_table(TABLE)
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
        with write_errors(self.folder), lock_directory(self.folder):
            self._table.checkout_latest()
            before = self.rows
            check_unique(rows.ids, present=self._ids)
            with spool_to_disk(rows, self.folder.parent, table_metadata=self._table.schema.metadata) as reader:
                width = reader.schema.field("vector").type.list_size
                if width != self.dim:
                    raise DataError(f"the rows have {width} dimensions, the table has {self.dim}. Use one model.")
                with self._restore_on_failure():
                    with lance_writes():
                        self._table.add(reader)
                    self.update_index()
        return self.rows - before

    def delete(self, where: str) -> int:
        """Delete the rows that match an SQL condition and return their number.

        Raises:
            DataError: If the filter is blank, or names a column that does not exist.
            ConfigError: If another process is changing the table.
        """
        with write_errors(self.folder), lock_directory(self.folder), self._filter_errors(where):
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
        with lance_writes():
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


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError to a DataError of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error}. Free the disk, or name another table.") from error


@contextmanager
def lance_writes() -> Iterator[None]:
    """Convert LanceDB's RuntimeError, which means a disk error while it writes, to an OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def is_table(folder: Path) -> bool:
    """Return True if the folder contains a table."""
    return (folder / f"{TABLE}.lance").is_dir()


def _format(metadata: Mapping[str, str]) -> str:
    return ", ".join(f"{name}:{kind}" for name, kind in metadata.items()) or "none"


def _reason(error: Exception) -> str:
    """Extract the first line of a LanceDB message, without its source location and prefix."""
    line = (str(error).splitlines() or [""])[0]
    return _LANCE_SOURCE.sub("", line).removeprefix("Invalid input, ").rstrip(".")
