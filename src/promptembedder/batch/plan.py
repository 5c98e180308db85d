"""What there is to do: each file cut into shards, before a model is loaded."""

import hashlib
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from promptembedder.data import FoundRow, Position, SourceFile, TextColumns, TextRow, scan_rows
from promptembedder.errors import DataError

__all__ = ["CorpusPlan", "ShardTask", "placed_rows", "plan_corpus"]

_HASHES_AT_ONCE = 1 << 23  # 64 MiB of them


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Rows of one file that become one shard; small, so that it can be sent to another process.

    Attributes:
        number: Of the shard, in the order of the corpus.
        rows: To read from `start` on, those that cannot be used too.
        id_prefix: Before the number of a row where no column holds ids.
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
        inputs: Location and sha256 of each file, in order.
        unusable: Rows among them that will be rejected for what they hold.
    """

    tasks: tuple[ShardTask, ...]
    inputs: tuple[tuple[str, str], ...]
    rows: int
    unusable: int


def plan_corpus(
    sources: Sequence[SourceFile], *, shard_rows: int, text_column: str | None, id_column: str | None
) -> CorpusPlan:
    """Read all files once: their hashes, their rows, whether each id comes once.

    A shard has rows of one file alone. Memory is bounded whatever the number of rows: 8 bytes of each id go to disk.

    Raises:
        DataError: A file cannot be read, holds no usable row or no text column, or an id comes twice.
    """
    for source in sources:
        source.check()
        if source.path is not None and not source.path.is_file():
            raise DataError(f"{source} can be read only once. Write it to a file first.")
    named = len({source.name for source in sources}) == len(sources)
    tasks: list[ShardTask] = []
    inputs: list[tuple[str, str]] = []
    rows = unusable = 0
    with _IdHashes() as ids:
        for source in sources:
            prefix = "" if len(sources) == 1 else f"{source.name if named else source.location}:"
            scan = _FileScan(source, text_column=text_column, id_column=id_column, prefix=prefix)
            starts = scan.run(shard_rows, ids)
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
            rows, unusable = rows + scan.rows, unusable + scan.unusable
        twice = ids.twice()
    if twice:
        _refuse_same_ids(tasks, twice)
    return CorpusPlan(tasks=tuple(tasks), inputs=tuple(inputs), rows=rows, unusable=unusable)


def placed_rows(task: ShardTask) -> Iterator[tuple[FoundRow, TextRow | DataError]]:
    """The rows of a shard, each as a text or as the reason why it cannot be one."""
    for found in islice(scan_rows(task.source, task.start), task.rows):
        yield found, _text_row(found, task.columns, task.source, task.id_prefix)


def _text_row(found: FoundRow, columns: TextColumns, source: SourceFile, prefix: str) -> TextRow | DataError:
    if isinstance(found.content, DataError):
        return found.content
    number = found.start.row
    try:
        row = columns.row(found.content, index=number, place=f"{source}, row {number + 1}")
    except DataError as error:
        return error
    return row if columns.id is not None else TextRow(id=prefix + row.id, text=row.text)


class _FileScan:
    """One pass over a file."""

    def __init__(self, source: SourceFile, *, text_column: str | None, id_column: str | None, prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self._text_column, self._id_column = text_column, id_column
        self.columns: TextColumns | None = None
        self.rows = self.unusable = 0

    def run(self, shard_rows: int, ids: "_IdHashes") -> list[Position]:
        """Where each shard starts."""
        starts: list[Position] = []
        last_reason: DataError | None = None
        for found in scan_rows(self._source):
            if self.rows % shard_rows == 0:
                starts.append(found.start)
            self.rows += 1
            row = self._row(found)
            if isinstance(row, DataError):
                self.unusable, last_reason = self.unusable + 1, row
            elif self.columns is not None and self.columns.id is not None:
                ids.add(row.id)
        if not self.rows:
            raise DataError(f"{self._source} is empty: it holds no rows. Write it again, or leave it out.")
        if last_reason is not None and self.unusable == self.rows:
            raise last_reason
        return starts

    def _row(self, found: FoundRow) -> TextRow | DataError:
        if isinstance(found.content, dict) and self.columns is None:
            self.columns = TextColumns.chosen(
                found.content,
                text_column=self._text_column,
                id_column=self._id_column,
                place=f"{self._source}, row {found.start.row + 1}",
            )
        if isinstance(found.content, DataError):
            return found.content
        assert self.columns is not None
        return _text_row(found, self.columns, self._source, self._prefix)


class _IdHashes:
    """Hashes of ids, on disk, and which come more than once."""

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

    def twice(self) -> set[int]:
        """The hashes that come more than once; a part of all of them is in memory at a time."""
        self._flush()
        if not self._count:
            return set()
        hashes = np.memmap(self._file, dtype=np.uint64, mode="r")
        parts = np.uint64(-(-self._count // _HASHES_AT_ONCE))
        found = set[int]()
        for part in range(int(parts)):
            own = np.concatenate(
                [
                    piece[piece % parts == part]
                    for piece in (
                        np.asarray(hashes[start : start + _HASHES_AT_ONCE])
                        for start in range(0, self._count, _HASHES_AT_ONCE)
                    )
                ]
            )
            own.sort()
            found.update(own[1:][own[1:] == own[:-1]].tolist())
        return found

    def _flush(self) -> None:
        self._file.write(self._waiting.tobytes())
        self._file.flush()
        self._waiting = array("Q")


def _id_hash(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "little")


def _refuse_same_ids(tasks: Sequence[ShardTask], hashes: set[int]) -> None:
    """Raise for the first id that comes twice; two ids may also have the same hash, which is no harm."""
    seen: dict[str, str] = {}
    for task in tasks:
        for found, row in placed_rows(task):
            if isinstance(row, DataError) or _id_hash(row.id) not in hashes:
                continue
            place = f"{task.source}, row {found.start.row + 1}"
            if row.id in seen:
                raise DataError(
                    f"{place}: the id {row.id[:80]!r} came before, in {seen[row.id]}. "
                    "Mend the ids, or name another column with id_column."
                )
            seen[row.id] = place


def _sha256(source: SourceFile) -> str:
    with source.open(unpacked=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
