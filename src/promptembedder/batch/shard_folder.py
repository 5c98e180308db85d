"""The folder of a sharded job: what it is, its finished shards, and their manifest."""

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
_MADE = ("part-*.parquet", "rejected-*.jsonl", ".part-*", ".rejected-*", f".{JOB_NAME}*")


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard: a line of the manifest.

    Attributes:
        file: Name of the shard in the folder.
        rows: Of the shard.
        rejects: Name of the file of rows that could not be used; None if all could.
        first_row: Number of the first row in its source, from 0.
        instructions_sha256: Of the job's instructions by column.
        tokens: Of its texts, as far as the model reads them.
        padding: Computed beside them.
        truncated: Texts that lost their end.
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
    """A folder that belongs to one job; for one process at a time.

    A shard counts once its line stands in the manifest, and a line is written once its shard is safe on the disk. So
    whatever happens in between, a line stands for a whole shard.
    """

    def __init__(self, folder: Path) -> None:
        """Of this folder, which need not exist."""
        self.folder = folder

    def begin(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Take the folder for this job; one that it has begun before goes on.

        Raises:
            DataError: The folder holds another job's shards or other files, or cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._clear()
            known = self._job()
            if known is None:
                self._begin_new(job)
            elif known != job:
                raise DataError(f"{self.folder} holds shards of another job: {_difference(known, job)}.")
        except OSError as error:
            raise DataError(f"cannot write {self.folder}: {error}. Name another output.") from error

    def finished(self) -> dict[int, ShardRecord]:
        """The finished shards by number. A line that was cut off is dropped from the manifest.

        Raises:
            DataError: A line in the middle is broken.
        """
        path = self.folder / MANIFEST_LINES
        if not path.exists():
            return {}
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        records = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = _checked(ShardRecord(**json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: not a line of a manifest. Take it out, and its shard is made again."
                ) from error
            records[record.shard] = record
        return records

    def is_whole(self, record: ShardRecord) -> bool:
        """Whether the shard's files are what they were when they were written."""
        files = [(record.file, record.sha256), (record.rejects, record.rejects_sha256)]
        return all(name is None or _has_hash(self.folder / name, sha256) for name, sha256 in files)

    def keep_only(self, records: Mapping[int, ShardRecord]) -> None:
        """Delete what belongs to no record, and have the manifest name these alone."""
        named = {name for record in records.values() for name in (record.file, record.rejects)}
        for pattern in _MADE:
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    path.unlink(missing_ok=True)
        lines = "".join(_line(records[number]) for number in sorted(records))
        _replace(self.folder / MANIFEST_LINES, lines)

    def add(self, record: ShardRecord) -> None:
        """Write the line of a shard that is safe on the disk.

        Raises:
            DataError: The disk is full.
        """
        try:
            with (self.folder / MANIFEST_LINES).open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"cannot write {self.folder}: {error}. Free the disk and run the command again.") from error

    def _begin_new(self, job: Mapping[str, Any]) -> None:
        strangers = [path.name for path in self.folder.iterdir() if not any(path.match(made) for made in _MADE)]
        if strangers:
            raise DataError(
                f"{self.folder} holds other files, the first {sorted(strangers)[0]!r}. Name another output."
            )
        _replace(self.folder / JOB_NAME, json.dumps(job, ensure_ascii=False, indent=1) + "\n")

    def _job(self) -> Any:
        path = self.folder / JOB_NAME
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no job of this library. Name another output.") from error

    def _clear(self) -> None:
        if self._job() is None:
            return
        (self.folder / MANIFEST_LINES).unlink(missing_ok=True)  # first: no line may stand for what is gone
        for pattern in _MADE:
            for path in self.folder.glob(pattern):
                path.unlink()
        (self.folder / JOB_NAME).unlink()


def fsync_folder(folder: Path) -> None:
    """Make renames in the folder last."""
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


def _checked(record: ShardRecord) -> ShardRecord:
    """The record itself.

    Raises:
        TypeError: A value is of another type.
        ValueError: A count is negative, or a file lies outside the folder.
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


def _difference(known: Any, job: Mapping[str, Any]) -> str:
    """What differs first, and the mend."""
    if not isinstance(known, dict):
        return "its job.json says nothing. Name another output"
    key = next(key for key in [*job, *known] if known.get(key) != job.get(key))
    if key == "inputs":
        try:
            before, now = dict(known.get(key) or []), dict(job[key])
        except (TypeError, ValueError):
            return "its job.json is damaged. Name another output, or overwrite it"
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if not changed:
            return "its files came in another order. Name them as before, name another output, or overwrite it"
        words = "is another file" if changed[0] in before and changed[0] in now else "is in one of them alone"
        return f"{changed[0]} {words}. Name another output, or overwrite it"
    return f"{key} was {_short(known.get(key))}, now it is {_short(job.get(key))}. Name another output, or overwrite it"


def _short(value: Any) -> str:
    words = json.dumps(value, ensure_ascii=False)
    return words if len(words) <= 200 else f"{words[:160]}... (sha256 {hashlib.sha256(words.encode()).hexdigest()[:8]})"
