"""Schema of a vector table, and the metadata stored in it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from promptembedder.data import COLUMN_KINDS
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import versions
from promptembedder.types import Float

__all__ = [
    "FIXED_COLUMNS",
    "TableMetadata",
    "VectorRows",
    "check_metadata",
    "encode_table_metadata",
    "read_schema_metadata",
    "row_batch",
    "row_schema",
]

FIXED_COLUMNS = ("id", "vector", "text")
_PREFIX = "promptembedder."
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # names that need no quotes in a filter
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class TableMetadata:
    """Model and instruction of the vectors of a table.

    Attributes:
        model: Name of the model, for messages.
        model_sha256: Identity of the model (`ModelIdentity.sha256`). In tables and files of earlier versions, the hash
            of its manifest.
        manifest_sha256: Hash of the model's manifest. Empty in tables and files of earlier versions.
        reader: Backbone string of the reader. Empty if unknown.
        instruction: Instruction of the texts.
    """

    model: str
    model_sha256: str
    manifest_sha256: str = ""
    reader: str
    instruction: str

    def check_model(self, other: "TableMetadata") -> None:
        """Check that vectors of the other model can be compared with the table's.

        Raises:
            DataError: If the other model, or its reader, is different. The message names both.
        """
        if self.reader and other.reader and other.reader != self.reader:
            raise DataError(
                f"the table contains vectors of {self.model} on the reader {self.reader}, not on {other.reader}. "
                f"Use --reader {self.reader}, or create a table with this reader."
            )
        # an earlier version identified a model by its manifest: its hash may be in either field
        if not ({self.model_sha256, self.manifest_sha256} & {other.model_sha256, other.manifest_sha256} - {""}):
            raise DataError(
                f"the table contains vectors of the model {self.model} (sha256 {self.model_sha256[:12]}), not of "
                f"{other.model} (sha256 {other.model_sha256[:12]}). Use the table's model, or create another table."
            )


@runtime_checkable
class VectorRows(Protocol):
    """Source of table rows that can be iterated more than once.

    Attributes:
        table_metadata: Model and instruction of the vectors.
        metadata: Type of each metadata column, by name.
    """

    @property
    def table_metadata(self) -> TableMetadata: ...  # noqa: D102

    @property
    def metadata(self) -> Mapping[str, str]: ...  # noqa: D102

    def ids(self) -> Iterator[Sequence[str]]:
        """Iterate over the ids, one batch at a time, and raise errors that can be found without vectors."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows as record batches of `row_batch`."""
        ...


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Check that a table can have these metadata columns.

    Raises:
        ConfigError: If a column has an invalid name or type.
    """
    for name, kind in metadata.items():
        if name in FIXED_COLUMNS or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is not a valid name of a metadata column. Use letters, digits and _, and none of "
                f"{', '.join(FIXED_COLUMNS)}."
            )
        if kind not in COLUMN_KINDS:
            raise ConfigError(f"metadata {name!r} has the unknown type {kind!r}. Use one of {', '.join(COLUMN_KINDS)}.")


def row_schema(dim: int, metadata: Mapping[str, str]) -> pa.Schema:
    """Build the schema of a row: id, vector, text and the metadata columns."""
    fixed = zip(FIXED_COLUMNS, (pa.string(), pa.list_(pa.float32(), dim), pa.string()), strict=True)
    return pa.schema([*fixed, *((name, COLUMN_KINDS[kind]) for name, kind in metadata.items())])


def row_batch(
    ids: Sequence[str], vectors: Float[np.ndarray, "docs dim"], texts: pa.Array, metadata: Mapping[str, pa.Array]
) -> pa.RecordBatch:
    """Build a record batch of table rows.

    Raises:
        DataError: If a vector is not finite, or not of length 1.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    valid = np.abs(lengths - 1) < _LENGTH_TOLERANCE  # False for NaN
    if not valid.all():
        row = int(valid.argmin())
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


def encode_table_metadata(table_metadata: TableMetadata, *, exact_below: int) -> dict[str, str]:
    """Encode the metadata for a schema, with the library versions that write the table."""
    known = {**asdict(table_metadata), "exact_below": str(exact_below), "versions": json.dumps(versions())}
    return {f"{_PREFIX}{key}": value for key, value in known.items()}


def read_schema_metadata(schema: pa.Schema) -> dict[str, str]:
    """Read the `promptembedder.` metadata of a schema, without the prefix. Empty for other files."""
    prefix = _PREFIX.encode()
    return {
        key.removeprefix(prefix).decode(): value.decode()
        for key, value in (schema.metadata or {}).items()
        if key.startswith(prefix)
    }
