"""The schema of a table of vectors, and what the table says about itself in it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from promptembedder.data import COLUMN_KINDS
from promptembedder.errors import ConfigError, DataError
from promptembedder.types import Float
from promptembedder.storage import versions

__all__ = [
    "OWN_COLUMNS",
    "TableFacts",
    "VectorRows",
    "check_metadata",
    "facts_of",
    "row_batch",
    "row_schema",
    "schema_facts",
]

OWN_COLUMNS = ("id", "vector", "text")
_PREFIX = "promptembedder."
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # needs no quotes in a filter
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """What made the vectors of a table.

    Attributes:
        model: Its name, for people.
        model_sha256: Hash of the saved model's manifest: which model it is.
        reader: The LLM that it was opened on; blank where what made the vectors did not say.
        instruction: What the texts were read under.
    """

    model: str
    model_sha256: str
    reader: str
    instruction: str

    def check_model(self, model: str, *, sha256: str, reader: str) -> None:
        """Raise unless vectors of this model can be compared with the table's.

        Raises:
            DataError: It is another model, or the same one on another LLM; the message names both.
        """
        if sha256 != self.model_sha256:
            raise DataError(
                f"the table holds vectors of the model {self.model} (manifest {self.model_sha256[:12]}), "
                f"not of {model} (manifest {sha256[:12]}). Name the table's model, or make a table with this one."
            )
        if self.reader and reader and reader != self.reader:
            raise DataError(
                f"the table holds vectors of {self.model} read by {self.reader}, not by {reader}. "
                f"Say --reader {self.reader}, or make a table with this one."
            )


@runtime_checkable
class VectorRows(Protocol):
    """Rows for a table, which can be gone through more than once.

    Attributes:
        facts: What makes their vectors.
        metadata: The kind of each further column, by name.
    """

    @property
    def facts(self) -> TableFacts: ...  # noqa: D102

    @property
    def metadata(self) -> Mapping[str, str]: ...  # noqa: D102

    def ids(self) -> Iterator[Sequence[str]]:
        """The ids, a batch at a time; finds what is wrong with a row as far as it needs no vector."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as `row_batch` makes them."""
        ...


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise unless a table can have these columns.

    Raises:
        ConfigError: One has a name or a kind that cannot be.
    """
    for name, kind in metadata.items():
        if name in OWN_COLUMNS or not _NAME.fullmatch(name):
            raise ConfigError(
                f"a column of metadata cannot be called {name!r}. Rename it: letters, digits and _, and none of "
                f"{', '.join(OWN_COLUMNS)}."
            )
        if kind not in COLUMN_KINDS:
            raise ConfigError(
                f"metadata {name!r} cannot be of the type {kind!r}. Use one of {', '.join(COLUMN_KINDS)}."
            )


def row_schema(dim: int, metadata: Mapping[str, str]) -> pa.Schema:
    """Columns of a row: id, vector, text and the metadata."""
    own = zip(OWN_COLUMNS, (pa.string(), pa.list_(pa.float32(), dim), pa.string()), strict=True)
    return pa.schema([*own, *((name, COLUMN_KINDS[kind]) for name, kind in metadata.items())])


def row_batch(
    ids: Sequence[str], vectors: Float[np.ndarray, "docs dim"], texts: pa.Array, metadata: Mapping[str, pa.Array]
) -> pa.RecordBatch:
    """Rows fit for a table.

    Raises:
        DataError: A vector is not finite, or not of length 1.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    fitting = np.abs(lengths - 1) < _LENGTH_TOLERANCE  # NaN does not fit
    if not fitting.all():
        row = int(fitting.argmin())
        if not np.isfinite(lengths[row]):
            raise DataError(f"the vector of {ids[row]!r} is not finite. Embed the row again, or leave it out.")
        raise DataError(f"the vector of {ids[row]!r} has length {lengths[row]:.4g}, not 1. Embed the row again.")
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    columns = {
        "id": pa.array(ids, type=pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "text": texts,
        **metadata,
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def schema_facts(facts: TableFacts, *, exact_below: int) -> dict[str, str]:
    """The facts for a schema's metadata, with the versions of what writes the table."""
    known = {
        "model": facts.model,
        "model_sha256": facts.model_sha256,
        "reader": facts.reader,
        "instruction": facts.instruction,
        "exact_below": str(exact_below),
        "versions": json.dumps(versions()),
    }
    return {f"{_PREFIX}{key}": value for key, value in known.items()}


def facts_of(schema: pa.Schema) -> dict[str, str]:
    """What a file or table of ours says in its schema, without our prefix; nothing if it is not ours."""
    found = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items() if _is_ours(key)}
    return {key.removeprefix(_PREFIX): value for key, value in found.items()}


def _is_ours(key: bytes) -> bool:
    return key.startswith(_PREFIX.encode())
