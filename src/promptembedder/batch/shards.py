"""Shards of a corpus: planned before a model is loaded, and recorded in the output folder when they are finished."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from promptembedder.data import FoundRow, Position, SourceFile, TextColumns, TextRow, scan_rows
from promptembedder.errors import DataError, short_repr
from promptembedder.storage import file_sha256, write_json, write_text

__all__ = [
    "JOB_NAME",
    "MANIFEST_LINES",
    "CorpusPlan",
    "ShardFolder",
    "ShardRecord",
    "ShardTask",
    "plan_corpus",
    "read_shard_rows",
]

JOB_NAME = "job.json"
MANIFEST_LINES = "manifest.jsonl"
_JOB_FILES = ("part-*.parquet", "rejected-*.jsonl", ".part-*", ".rejected-*", f".{JOB_NAME}*")
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
    """

    tasks: tuple[ShardTask, ...]
    inputs: tuple[tuple[str, str], ...]
    rows: int


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
    for source in sources:
        source.check()
        if source.path is not None and not source.path.is_file():
            raise DataError(f"{source} can be read only once. Save it as a file first.")
    distinct_names = len({source.name for source in sources}) == len(sources)
    with _IdHashes() as ids:
        planner = _Planner(
            ids, shard_rows=shard_rows, text_column=text_column, id_column=id_column, passthrough=passthrough
        )
        for source in sources:
            name = source.name if distinct_names else source.location
            planner.add(source, id_prefix="" if len(sources) == 1 else f"{name}:")
        repeated = ids.repeated()
    if planner.missing:
        names = ", ".join(map(short_repr, planner.found_columns)) or "no columns"
        raise DataError(
            f"no row of the corpus has the column {short_repr(next(iter(planner.missing)))}: found {names}. "
            "Name one of these."
        )
    tasks = planner.tasks
    if repeated:
        _raise_repeated_id(tasks, repeated)
    return CorpusPlan(tasks=tuple(tasks), inputs=tuple(planner.inputs), rows=sum(task.rows for task in tasks))


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


class _Planner:
    """Divides files into shards and validates their rows, in one pass over each file.

    Attributes:
        tasks: Shards of all files.
        inputs: Location and sha256 of each file.
        missing: Passthrough columns that no row has.
        found_columns: First columns of the corpus in order of appearance, if a passthrough column is missing.
    """

    def __init__(
        self,
        ids: "_IdHashes",
        *,
        shard_rows: int,
        text_column: str | None,
        id_column: str | None,
        passthrough: Sequence[str],
    ) -> None:
        self._ids, self._shard_rows, self._text_column, self._id_column = ids, shard_rows, text_column, id_column
        self.tasks: list[ShardTask] = []
        self.inputs: list[tuple[str, str]] = []
        self.missing = dict.fromkeys(passthrough)
        self.found_columns: dict[str, None] = {}

    def add(self, source: SourceFile, *, id_prefix: str) -> None:
        """Add the shards of a file, and the ids of its rows."""
        starts: list[Position] = []
        columns: TextColumns | None = None  # chosen by the first valid row
        reason: DataError | None = None
        rows = invalid = 0
        for scanned in scan_rows(source):
            if rows % self._shard_rows == 0:
                starts.append(scanned.start)
            rows += 1
            if isinstance(scanned.content, DataError):
                invalid, reason = invalid + 1, scanned.content
                continue
            self._look_for_missing(scanned.content)
            columns = columns or self._choose_columns(scanned.content, f"{source}, row {scanned.start.row + 1}")
            row = _text_row(scanned, columns, source, id_prefix)
            if isinstance(row, DataError):
                invalid, reason = invalid + 1, row
            elif columns.id is not None:
                self._ids.add(row.id)
        if not rows:
            raise DataError(f"{source} is empty: it holds no rows. Write it again, or leave it out.")
        if columns is None or (reason is not None and invalid == rows):
            assert reason is not None
            raise reason
        with source.open(unpacked=False) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.inputs.append((source.location, sha256))
        ends = [*(start.row for start in starts[1:]), rows]
        self.tasks += [
            ShardTask(
                number=len(self.tasks) + i,
                source=source,
                source_sha256=sha256,
                start=start,
                rows=end - start.row,
                columns=columns,
                id_prefix=id_prefix,
            )
            for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def _choose_columns(self, row: dict[str, Any], place: str) -> TextColumns:
        return TextColumns.chosen(row, text_column=self._text_column, id_column=self._id_column, place=place)

    def _look_for_missing(self, row: Mapping[str, object]) -> None:
        for name in row if self.missing else ():
            self.missing.pop(name, None)
            if len(self.found_columns) < _MAX_LISTED_COLUMNS:
                self.found_columns[name] = None


class _IdHashes:
    """Hashes of ids in a temporary file, to detect repeated ids."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._count = 0

    def __enter__(self) -> "_IdHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row_id: str) -> None:
        self._file.write(_id_hash(row_id).to_bytes(8, "little"))
        self._count += 1

    def repeated(self) -> set[int]:
        """Find the hashes that occur more than once. They are sorted in the file, not in memory."""
        self._file.flush()
        if not self._count:
            return set()
        hashes = np.memmap(self._file, dtype="<u8", mode="r+")
        hashes.sort()
        repeated = set[int]()
        for start in range(0, self._count, _HASHES_PER_PASS):
            part = hashes[start : start + _HASHES_PER_PASS + 1]
            repeated.update(part[1:][part[1:] == part[:-1]].tolist())
        return repeated


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


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard, stored as one line of the manifest.

    Attributes:
        shard: Number of the shard in the order of the corpus, from 0.
        file: Name of the shard's file in the folder.
        sha256: Hash of this file.
        rows: Number of rows in the shard.
        rejected: Number of invalid rows.
        rejects: Name of the file that lists the invalid rows. None without any.
        rejects_sha256: Hash of this file.
        source: Location of the source file.
        source_sha256: Hash of the source file.
        first_row: Number of the shard's first row in the source file, from 0.
        model_sha256: Identity of the model, `ModelIdentity.sha256`.
        instructions_sha256: Hash of the instruction of each vector column.
        versions: Library versions.
        tokens: Number of tokens of the texts after truncation.
        padding: Number of computed padding tokens.
        truncated: Number of truncated texts.
    """

    shard: int
    file: str
    sha256: str
    rows: int
    rejected: int
    rejects: str | None
    rejects_sha256: str | None
    source: str
    source_sha256: str
    first_row: int
    model_sha256: str
    instructions_sha256: str
    versions: Mapping[str, str]
    tokens: int
    padding: int
    truncated: int


class ShardFolder:
    """Output folder of one job, for one process at a time.

    A shard is finished when its line is in the manifest. The line is written after the shard is flushed to the disk,
    so that every line of the manifest names a complete shard.
    """

    def __init__(self, folder: Path) -> None:
        """Use this folder, which need not exist yet."""
        self.folder = folder

    def begin(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Create the folder for this job, or resume the job in it.

        Raises:
            DataError: If the folder contains the shards of another job or other files, or is not writable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._clear()
            known = self._job()
            if known is None:
                self._begin_new(job)
            elif known != job:
                raise DataError(f"{self.folder} contains shards of another job: {_describe_difference(known, job)}.")
        except OSError as error:
            raise DataError(f"cannot write {self.folder}: {error}. Name another output.") from error

    def model_sha256(self) -> str | None:
        """Read the model that the folder's job was started with. Return None without a job."""
        job = self._job()
        return str(job.get("model_sha256")) if isinstance(job, dict) else None

    def finished(self) -> dict[int, ShardRecord]:
        """Read the finished shards by number. An incomplete last line is removed from the manifest.

        Raises:
            DataError: If another line is invalid.
        """
        path = self.folder / MANIFEST_LINES
        if not path.exists():
            return {}
        raw = path.read_bytes()
        complete = raw[: raw.rfind(b"\n") + 1]
        if len(complete) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(complete))
        records = {}
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                record = _validate(ShardRecord(**json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: not a line of a manifest. Delete the line to embed its shard again."
                ) from error
            records[record.shard] = record
        return records

    def is_intact(self, record: ShardRecord) -> bool:
        """Return True if the shard's files still have their recorded hashes."""
        files = {record.file: record.sha256, record.rejects: record.rejects_sha256}
        paths = {self.folder / name: sha256 for name, sha256 in files.items() if name is not None}
        try:
            return all(not path.is_symlink() and file_sha256(path) == sha256 for path, sha256 in paths.items())
        except (OSError, ValueError):
            return False

    def prune(self, records: Mapping[int, ShardRecord]) -> None:
        """Delete the files of all other shards, and rewrite the manifest with these records only."""
        recorded = {name for record in records.values() for name in (record.file, record.rejects)}
        for pattern in _JOB_FILES:
            for path in self.folder.glob(pattern):
                if path.name not in recorded:
                    path.unlink(missing_ok=True)
        write_text(self.folder / MANIFEST_LINES, "".join(_line(records[number]) for number in sorted(records)))

    def add(self, record: ShardRecord) -> None:
        """Append the line of a shard that has been flushed to the disk.

        Raises:
            DataError: If the disk is full.
        """
        try:
            with (self.folder / MANIFEST_LINES).open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"cannot write {self.folder}: {error}. Free the disk and run the command again.") from error

    def _begin_new(self, job: Mapping[str, Any]) -> None:
        other_files = [
            path.name for path in self.folder.iterdir() if not any(path.match(pattern) for pattern in _JOB_FILES)
        ]
        if other_files:
            raise DataError(
                f"{self.folder} contains other files, the first {sorted(other_files)[0]!r}. Name another output."
            )
        write_json(self.folder / JOB_NAME, job)

    def _job(self) -> Any:
        path = self.folder / JOB_NAME
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a job of this library. Name another output.") from error

    def _clear(self) -> None:
        if self._job() is None:
            return
        (self.folder / MANIFEST_LINES).unlink(missing_ok=True)  # first: no line may name a deleted shard
        for pattern in _JOB_FILES:
            for path in self.folder.glob(pattern):
                path.unlink()
        (self.folder / JOB_NAME).unlink()


def _validate(record: ShardRecord) -> ShardRecord:
    """Validate the types and values of a record and return it.

    Raises:
        TypeError: If a value has another type.
        ValueError: If a count is negative, or a file is outside the folder.
    """
    hints = get_type_hints(ShardRecord) | {"versions": dict}
    for name, hint in hints.items():
        value = getattr(record, name)
        if not isinstance(value, hint) or isinstance(value, bool):
            raise TypeError(f"{name} is of type {type(value).__name__}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name} is negative")
    for file in (record.file, record.rejects):
        if file is not None and (Path(file).name != file or file in ("", "..") or "\0" in file):
            raise ValueError("a file outside the folder")
    return record


def _line(record: ShardRecord) -> str:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n"


def _describe_difference(known: Any, job: Mapping[str, Any]) -> str:
    """Describe the first difference between two jobs, and how to fix it."""
    if not isinstance(known, dict):
        return "its job.json is empty. Name another output"
    key = next(key for key in [*job, *known] if known.get(key) != job.get(key))
    if key == "inputs":
        try:
            before, now = dict(known.get(key) or []), dict(job[key])
        except (TypeError, ValueError):
            return "its job.json is damaged. Name another output, or pass --overwrite"
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if not changed:
            return "its files were in another order. Name them in that order, name another output, or pass --overwrite"
        problem = "has changed" if changed[0] in before and changed[0] in now else "is in only one of the jobs"
        return f"{changed[0]} {problem}. Name another output, or pass --overwrite"
    old, new = _abbreviate(known.get(key)), _abbreviate(job.get(key))
    return f"{key} was {old}, now it is {new}. Name another output, or pass --overwrite"


def _abbreviate(value: Any) -> str:
    serialized = json.dumps(value, ensure_ascii=False)
    if len(serialized) <= 200:
        return serialized
    return f"{serialized[:160]}... (sha256 {hashlib.sha256(serialized.encode()).hexdigest()[:8]})"
