"""A table of vectors on disk, in LanceDB's format: rows come and go, filters, exact and approximate search."""

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
from promptembedder.search.spooled_rows import spooled
from promptembedder.search.table_schema import OWN_COLUMNS, TableFacts, VectorRows, facts_of
from promptembedder.search.unique_ids import check_unique
from promptembedder.types import Float
from promptembedder.storage import owned_folder

__all__ = ["TABLE", "TableHit", "VectorTable", "is_table", "lance_writes", "write_errors"]

TABLE = "vectors"  # the name by which LanceDB knows it

_INDEX = "vector_idx"
_FACTS = ("model", "model_sha256", "reader", "instruction")
_LANCE_ERRORS = (ValueError, RuntimeError, OSError)
_QUOTED = re.compile(r"'[^']*'")
_LANCE_PLACE = re.compile(r", /\S+:\d+:\d+$")  # the line of its source that LanceDB ends a message with
# docs/search.md has the measurements; without refining, scores would be those of vectors rounded to 8 bits
_EF = 800
_REFINE_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class TableHit:
    """A row that was found: `rank` counts from 1, `score` is its cosine, which is exact after any search."""

    rank: int
    id: str
    text: str | None
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


class VectorTable:
    """Rows of an id, a vector of length 1, a text and metadata, and what made their vectors.

    The folder is a LanceDB database with one table, `vectors`. Each change is one transaction: it happens whole or not
    at all, even if the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        """Open the table in `folder`.

        Raises:
            DataError: There is none, or `create_table` did not make it.
            ImportError: LanceDB is not installed.
        """
        lancedb = require("lancedb", extra="search")
        if not is_table(folder):  # LanceDB would make the folder
            raise DataError(f"{folder} is no table. Make one: promptembedder index SOURCE --table {folder}")
        try:
            self._table = lancedb.connect(folder).open_table(TABLE)
            schema = self._table.schema
        except _LANCE_ERRORS as error:
            raise DataError(f"the table in {folder} cannot be read: {_reason(error)}. Make it again.") from error
        known = facts_of(schema)
        if not known.keys() >= {*_FACTS, "exact_below"}:
            raise DataError(f"the table in {folder} does not say which model made it. Make it with promptembedder.")
        kinds = {type_: kind for kind, type_ in COLUMN_KINDS.items()}
        self.folder = folder
        self.facts = TableFacts(**{key: known[key] for key in _FACTS})
        self.exact_below = int(known["exact_below"])
        self.dim = int(schema.field("vector").type.list_size)
        self.metadata = {one.name: kinds[one.type] for one in schema if one.name not in OWN_COLUMNS}
        self.index_type = self._index_type()

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self._table.count_rows())

    def add(self, rows: VectorRows) -> int:
        """Append the rows, and bring the index up to date; says how many they were.

        Raises:
            DataError: The rows are of another model, instruction, width or kind of metadata; an id comes twice or is
                in the table; or a row cannot be used. The table is as it was.
            ConfigError: Another process is changing the table.
        """
        self._check_fit(rows)
        with write_errors(self.folder), owned_folder(self.folder):
            self._table.checkout_latest()
            before = self.rows
            check_unique(rows.ids, present=self._ids)
            with spooled(rows, self.folder.parent, facts=self._table.schema.metadata) as reader:
                width = reader.schema.field("vector").type.list_size
                if width != self.dim:
                    raise DataError(f"the rows have {width} dimensions, the table has {self.dim}. Use one model.")
                with self._restored_on_failure():
                    with lance_writes():
                        self._table.add(reader)
                    self.update_index()
        return self.rows - before

    def delete(self, where: str) -> int:
        """Delete the rows that fit the filter, which is a condition in SQL; says how many they were.

        Raises:
            DataError: The filter is blank, or names a column that there is not.
            ConfigError: Another process is changing the table.
        """
        with write_errors(self.folder), owned_folder(self.folder), self._filter_errors(where):
            self._table.checkout_latest()
            before = self.rows
            self._table.delete(where)
        return before - self.rows

    def search(
        self, query: Float[np.ndarray, " dim"], *, k: int, where: str | None = None, exact: bool = False
    ) -> list[TableHit]:
        """The `k` nearest rows by cosine, or all if there are fewer; of equal ones the earlier goes first.

        Args:
            where: Condition in SQL that the rows fit: `year >= 2000 AND lang = 'en'`.
            exact: Compare all rows, also where there is an index.

        Raises:
            ConfigError: `k` is not positive.
            DataError: The query has another width than the table, is not finite or zero; or the filter cannot be used.
        """
        if k < 1:
            raise ConfigError(f"the number of hits k must be at least 1, got {k}. Try 5.")
        with self._filter_errors(where):
            found = self._nearest(self._unit(query), k, where, exact).to_pylist()
        found.sort(key=lambda row: (row["_distance"], row["_rowid"]))
        return [
            TableHit(
                rank=rank,
                id=row["id"],
                text=row["text"],
                score=1 - row["_distance"],
                metadata={name: row[name] for name in self.metadata},
            )
            for rank, row in enumerate(found, start=1)
        ]

    def check_filter(self, where: str | None) -> int:
        """How many rows fit the filter; all of them fit None.

        Raises:
            DataError: The filter is blank, broken, or names a column that there is not.
        """
        with self._filter_errors(where):
            return int(self._table.count_rows(where))

    def sample(self, count: int, *, seed: int) -> tuple[list[str], Float[np.ndarray, "docs dim"]]:
        """Ids and vectors of rows drawn at random without repetition; all rows if there are fewer."""
        rows = self.rows
        drawn = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
        taken = self._table.take_offsets(sorted(drawn.tolist())).select(["id", "vector"]).to_arrow()
        flat = taken["vector"].combine_chunks().flatten().to_numpy()
        return taken["id"].to_pylist(), flat.reshape(len(taken), self.dim)

    def update_index(self) -> None:
        """Make the approximate index, or take rows into it that it lacks; nothing where the table is small."""
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
    def _restored_on_failure(self) -> Iterator[None]:
        """Making the index takes minutes: stopped meanwhile, the rows that came before it would stay."""
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
        asked = self._table.search(unit, vector_column_name="vector").distance_type("cosine").limit(k)
        if where is not None:
            asked = asked.where(where, prefilter=True)
        if self.index_type is not None:
            ef = max(_EF, _REFINE_FACTOR * k)  # LanceDB refuses fewer
            asked = asked.bypass_vector_index() if exact else asked.ef(ef).refine_factor(_REFINE_FACTOR)
        return asked.select(["id", "text", *self.metadata, "_distance"]).with_row_id(True).to_arrow()

    def _unit(self, query: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " dim"]:
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
        facts = rows.facts
        self.facts.check_model(facts.model, sha256=facts.model_sha256, reader=facts.reader)
        if facts.instruction != self.facts.instruction:
            raise DataError(
                f"the rows were read under {facts.instruction!r}, those of the table under {self.facts.instruction!r}. "
                "Embed them under the table's instruction."
            )
        if dict(rows.metadata) != self.metadata:
            raise DataError(
                f"the rows have the metadata {_listed(rows.metadata)}, the table has {_listed(self.metadata)}. "
                "Name the same columns and types."
            )

    @contextmanager
    def _filter_errors(self, where: str | None) -> Iterator[None]:
        """LanceDB's refusal of a filter, in one line; `; ...` it would leave out without a word."""
        if where is not None and (not where.strip() or ";" in _QUOTED.sub("", where)):
            raise DataError(f"{where!r} is no filter. Write one condition: year >= 2000 AND lang = 'en'")
        try:
            yield
        except DataError:
            raise
        except _LANCE_ERRORS as error:
            if where is None:
                raise DataError(
                    f"the table in {self.folder} cannot be read: {_reason(error)}. Make it again."
                ) from error
            columns = ", ".join(("id", "text", *self.metadata))
            raise DataError(f"cannot filter by {where!r}: {_reason(error)}. Columns: {columns}.") from error


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """What the disk refuses, in one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error}. Free the disk, or name another table.") from error


@contextmanager
def lance_writes() -> Iterator[None]:
    """Where LanceDB writes: what it raises is an error of the disk, while other code's `RuntimeError` is not."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def is_table(folder: Path) -> bool:
    """Whether the folder holds a table, or what looks like one."""
    return (folder / f"{TABLE}.lance").is_dir()


def _listed(metadata: Mapping[str, str]) -> str:
    return ", ".join(f"{name}:{kind}" for name, kind in metadata.items()) or "none"


def _reason(error: Exception) -> str:
    """The first line of a message of LanceDB's, without its own place and the word that each begins with."""
    line = (str(error).splitlines() or [""])[0]
    return _LANCE_PLACE.sub("", line).removeprefix("Invalid input, ").rstrip(".")
