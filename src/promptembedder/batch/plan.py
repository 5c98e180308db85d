"""Plan of a sharded job: validation of all files and their division into shards, before a model is loaded."""

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

import numpy as np

from promptembedder.data import FoundRow, Position, SourceFile, TextColumns, TextRow, scan_rows
from promptembedder.errors import DataError, short_repr

__all__ = ["CorpusPlan", "ShardTask", "plan_corpus", "read_shard_rows"]

_HASHES_PER_PASS = 1 << 23  # 64 MiB of hashes in memory
_MAX_LISTED_COLUMNS = 20


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Row range of one file that becomes one shard. Small enough to send to another process.

    Attributes:
        number: Number of the shard in the order of the corpus, from 0.
        source: File of the rows.
        source_sha256: Hash of the file.
        start: Position of the first row.
        rows: Number of rows from `start` on, invalid ones included.
        columns: Columns of the texts and ids.
        id_prefix: Prefix of the row number in the id, if no column contains ids.
    """

    number: int
    source: SourceFile
    source_sha256: str
    start: Position
    rows: int
    columns: TextColumns
    id_prefix: str


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """All shards of a corpus.

    Attributes:
        tasks: Shards in order.
        inputs: Location and sha256 of each file, in order.
        rows: Number of rows, invalid ones included.
        invalid: Number of invalid rows, which will be rejected.
    """

    tasks: tuple[ShardTask, ...]
    inputs: tuple[tuple[str, str], ...]
    rows: int
    invalid: int


def plan_corpus(
    sources: Sequence[SourceFile],
    *,
    shard_rows: int,
    text_column: str | None,
    id_column: str | None,
    passthrough: Sequence[str] = (),
) -> CorpusPlan:
    """Read all files once to hash them, validate their rows and ids, and divide them into shards.

    All rows of a shard are from one file. Memory is bounded: an 8-byte hash of each id is written to disk.

    Args:
        shard_rows: Maximum number of rows per shard.
        text_column: Column of the text, as in `read_texts`.
        id_column: Column of the id, as in `read_texts`.
        passthrough: Names of the passthrough columns.

    Raises:
        DataError: If a file cannot be read, has no valid row or no text column, an id is repeated, or a passthrough
            column exists in no row.
    """
    _check_sources(sources)
    distinct_names = len({source.name for source in sources}) == len(sources)
    found_columns: dict[str, None] = {}
    missing = dict.fromkeys(passthrough)
    tasks: list[ShardTask] = []
    inputs: list[tuple[str, str]] = []
    rows = invalid = 0
    with _IdHashes() as ids:
        for source in sources:
            prefix = "" if len(sources) == 1 else f"{source.name if distinct_names else source.location}:"
            scan = _FileScan(source, text_column=text_column, id_column=id_column, prefix=prefix, passthrough=missing)
            starts = scan.run(shard_rows, ids)
            missing = scan.missing
            found_columns |= scan.found_columns
            sha256 = _sha256(source)
            inputs.append((source.location, sha256))
            ends = [*(start.row for start in starts[1:]), scan.rows]
            assert scan.columns is not None
            tasks += [
                ShardTask(
                    number=len(tasks) + i,
                    source=source,
                    source_sha256=sha256,
                    start=start,
                    rows=end - start.row,
                    columns=scan.columns,
                    id_prefix=prefix,
                )
                for i, (start, end) in enumerate(zip(starts, ends, strict=True))
            ]
            rows, invalid = rows + scan.rows, invalid + scan.invalid
        repeated = ids.repeated()
    if missing:
        _raise_missing_column(next(iter(missing)), found_columns)
    if repeated:
        _raise_repeated_id(tasks, repeated)
    return CorpusPlan(tasks=tuple(tasks), inputs=tuple(inputs), rows=rows, invalid=invalid)


def _check_sources(sources: Sequence[SourceFile]) -> None:
    for source in sources:
        source.check()
        if source.path is not None and not source.path.is_file():
            raise DataError(f"{source} can be read only once. Save it as a file first.")


def _raise_missing_column(name: str, found: Iterable[str]) -> NoReturn:
    names = ", ".join(short_repr(column) for column in islice(found, _MAX_LISTED_COLUMNS)) or "no columns"
    raise DataError(f"no row of the corpus has the column {short_repr(name)}: found {names}. Name one of these.")


def read_shard_rows(task: ShardTask) -> Iterator[tuple[FoundRow, TextRow | DataError]]:
    """Read the rows of a shard. Each is converted to a text, or to the error that makes it invalid."""
    for scanned in islice(scan_rows(task.source, task.start), task.rows):
        yield scanned, _text_row(scanned, task.columns, task.source, task.id_prefix)


def _text_row(scanned: FoundRow, columns: TextColumns, source: SourceFile, prefix: str) -> TextRow | DataError:
    if isinstance(scanned.content, DataError):
        return scanned.content
    number = scanned.start.row
    try:
        row = columns.row(scanned.content, index=number, place=f"{source}, row {number + 1}")
    except DataError as error:
        return error
    return row if columns.id is not None else TextRow(id=prefix + row.id, text=row.text)


class _FileScan:
    """One pass over a file, which counts and validates its rows.

    Attributes:
        columns: Columns of the texts and ids, chosen by the first row.
        rows: Number of rows.
        invalid: Number of invalid rows.
        missing: Passthrough columns that no row has.
        found_columns: Columns of the rows, in order of appearance, if passthrough columns are missing.
    """

    def __init__(
        self,
        source: SourceFile,
        *,
        text_column: str | None,
        id_column: str | None,
        prefix: str,
        passthrough: Mapping[str, None],
    ) -> None:
        self._source, self._prefix = source, prefix
        self._text_column, self._id_column = text_column, id_column
        self.columns: TextColumns | None = None
        self.rows = self.invalid = 0
        self.missing = dict(passthrough)
        self.found_columns: dict[str, None] = {}

    def run(self, shard_rows: int, ids: "_IdHashes") -> list[Position]:
        """Scan the rows, add their ids to `ids`, and return the start of each shard."""
        starts: list[Position] = []
        last_reason: DataError | None = None
        for scanned in scan_rows(self._source):
            if self.rows % shard_rows == 0:
                starts.append(scanned.start)
            self.rows += 1
            row = self._convert(scanned)
            if isinstance(row, DataError):
                self.invalid, last_reason = self.invalid + 1, row
            elif self.columns is not None and self.columns.id is not None:
                ids.add(row.id)
        if not self.rows:
            raise DataError(f"{self._source} is empty: it holds no rows. Write it again, or leave it out.")
        if last_reason is not None and self.invalid == self.rows:
            raise last_reason
        return starts

    def _convert(self, scanned: FoundRow) -> TextRow | DataError:
        if isinstance(scanned.content, dict) and self.missing:
            self._look_for_missing(scanned.content)
        if isinstance(scanned.content, dict) and self.columns is None:
            self.columns = TextColumns.chosen(
                scanned.content,
                text_column=self._text_column,
                id_column=self._id_column,
                place=f"{self._source}, row {scanned.start.row + 1}",
            )
        if isinstance(scanned.content, DataError):
            return scanned.content
        assert self.columns is not None
        return _text_row(scanned, self.columns, self._source, self._prefix)

    def _look_for_missing(self, row: Mapping[str, object]) -> None:
        for name in row:
            self.missing.pop(name, None)
            if len(self.found_columns) < _MAX_LISTED_COLUMNS:
                self.found_columns[name] = None


class _IdHashes:
    """Hashes of ids in a temporary file, to detect repeated ids."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._waiting = array("Q")
        self._count = 0

    def __enter__(self) -> "_IdHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row_id: str) -> None:
        self._waiting.append(_id_hash(row_id))
        self._count += 1
        if len(self._waiting) >= 1 << 16:
            self._flush()

    def repeated(self) -> set[int]:
        """Find the hashes that occur more than once, with one part of the hashes in memory at a time."""
        self._flush()
        if not self._count:
            return set()
        hashes = np.memmap(self._file, dtype=np.uint64, mode="r")
        parts = np.uint64(-(-self._count // _HASHES_PER_PASS))
        repeated = set[int]()
        for part in range(int(parts)):
            hashes_of_part = np.concatenate(
                [
                    piece[piece % parts == part]
                    for piece in (
                        np.asarray(hashes[start : start + _HASHES_PER_PASS])
                        for start in range(0, self._count, _HASHES_PER_PASS)
                    )
                ]
            )
            hashes_of_part.sort()
            repeated.update(hashes_of_part[1:][hashes_of_part[1:] == hashes_of_part[:-1]].tolist())
        return repeated

    def _flush(self) -> None:
        self._file.write(self._waiting.tobytes())
        self._file.flush()
        self._waiting = array("Q")


def _id_hash(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "little")


def _raise_repeated_id(tasks: Sequence[ShardTask], hashes: set[int]) -> None:
    """Raise a DataError for the first repeated id. Return if the hashes only collide."""
    seen: dict[str, str] = {}
    for task in tasks:
        for scanned, row in read_shard_rows(task):
            if isinstance(row, DataError) or _id_hash(row.id) not in hashes:
                continue
            location = f"{task.source}, row {scanned.start.row + 1}"
            if row.id in seen:
                raise DataError(
                    f"{location}: the id {row.id[:80]!r} is repeated, first in {seen[row.id]}. "
                    "Correct the ids, or name another column with --id-column."
                )
            seen[row.id] = location


def _sha256(source: SourceFile) -> str:
    with source.open(unpacked=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
