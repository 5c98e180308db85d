"""Output folder of a sharded job: job description, finished shards and their manifest."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from promptembedder.errors import DataError
from promptembedder.storage import file_sha256

__all__ = ["JOB_NAME", "MANIFEST_LINES", "ShardFolder", "ShardRecord", "fsync_folder"]

JOB_NAME = "job.json"
MANIFEST_LINES = "manifest.jsonl"
_JOB_FILES = ("part-*.parquet", "rejected-*.jsonl", ".part-*", ".rejected-*", f".{JOB_NAME}*")


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
        files = [(record.file, record.sha256), (record.rejects, record.rejects_sha256)]
        return all(name is None or _has_hash(self.folder / name, sha256) for name, sha256 in files)

    def prune(self, records: Mapping[int, ShardRecord]) -> None:
        """Delete the files of all other shards, and rewrite the manifest with these records only."""
        recorded = {name for record in records.values() for name in (record.file, record.rejects)}
        for pattern in _JOB_FILES:
            for path in self.folder.glob(pattern):
                if path.name not in recorded:
                    path.unlink(missing_ok=True)
        lines = "".join(_line(records[number]) for number in sorted(records))
        _replace(self.folder / MANIFEST_LINES, lines)

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
        _replace(self.folder / JOB_NAME, json.dumps(job, ensure_ascii=False, indent=1) + "\n")

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


def fsync_folder(folder: Path) -> None:
    """Flush renames in the folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, content: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        fsync_folder(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


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


def _has_hash(path: Path, sha256: str | None) -> bool:
    try:
        return not path.is_symlink() and file_sha256(path) == sha256
    except (OSError, ValueError):
        return False


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
