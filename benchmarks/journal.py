"""Journal of finished cells, line by line, so that a run can resume. Results of different machines are never mixed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptembedder.errors import DataError
from promptembedder.storage import write_text

__all__ = ["Journal"]

Key = Mapping[str, Any]


class Journal:
    """Rows by key in a JSON-lines file, appended when they are finished.

    The first line contains the machine and the versions. An incomplete last line is dropped.
    """

    def __init__(self, path: Path, *, machine: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Open or create the journal at `path`.

        Raises:
            DataError: If the journal is from another machine or other versions, or a line is damaged.
        """
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        head = {"machine": dict(machine), "versions": dict(versions)}
        if path.is_file():
            self._read(head)
        else:
            write_text(path, json.dumps(head, ensure_ascii=False) + "\n")

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: Key) -> dict[str, Any] | None:
        """Return the row of this key, or None."""
        return self._rows.get(_text(key))

    def add(self, key: Key, row: Mapping[str, Any]) -> None:
        """Store a row in memory and on disk."""
        line = json.dumps({"key": dict(key), "row": dict(row)}, ensure_ascii=False, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._rows[_text(key)] = dict(row)

    def _read(self, head: Mapping[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")
        if lines[-1]:  # incomplete line of an interrupted write
            write_text(self.path, text[: len(text) - len(lines[-1])])
        entries = [self._entry(number, line) for number, line in enumerate(lines[:-1], start=1)]
        if not entries:
            write_text(self.path, json.dumps(head, ensure_ascii=False) + "\n")
            return
        for part in ("machine", "versions"):
            found, expected = entries[0].get(part, {}), head[part]
            other = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            if other:
                raise DataError(
                    f"{self.path} holds measurements of another {part.removesuffix('s')} ({', '.join(other)} differ). "
                    "Choose another -o, or pass --overwrite."
                )
        for entry in entries[1:]:
            self._rows[_text(entry["key"])] = entry["row"]

    def _entry(self, number: int, line: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = json.loads(line)
            if number > 1 and not {"key", "row"} <= entry.keys():
                raise ValueError("no key or row")
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{self.path} is damaged in line {number}. Choose another -o, or pass --overwrite."
            ) from error
        return entry


def _text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)
