"""Results file and report of the fault campaigns."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from promptembedder.errors import DataError
from promptembedder.storage import write_text

__all__ = ["reliability_markdown", "write_reliability"]

_JSON, _PAGE = "reliability.json", "reliability.md"
_COLUMNS = ("campaign", "tried", "survived", "share", "seconds", "seed")


def write_reliability(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the JSON file and the Markdown page. Campaigns in the folder that were not run now are preserved.

    Raises:
        DataError: If the folder's JSON cannot be read.
    """
    held = _held(folder / _JSON)
    together = {row["name"]: dict(row) for row in (*held, *rows)}
    content = {"campaigns": list(together.values())}
    write_text(folder / _JSON, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / _PAGE, "# Faults tried and survived\n\n" + reliability_markdown(content))
    return [folder / _JSON, folder / _PAGE]


def reliability_markdown(content: Mapping[str, Any]) -> str:
    """Return a Markdown table, the notes and failures of each campaign, and the commands."""
    rows = content["campaigns"]
    table = [
        [
            row["name"],
            f"{row['tried']:,} {row['unit']}",
            f"{row['survived']:,}",
            _share(row["survived"], row["tried"]),
            f"{row['seconds']:.0f}",
            str(row["seed"]),
        ]
        for row in rows
    ]
    parts = [markdown_table(_COLUMNS, table)]
    parts += [f"- *{row['name']}*: {row['notes']}." for row in rows]
    failures = [f"- {row['name']}: {failure}" for row in rows for failure in row["failures"]]
    if failures:
        parts += ["\nWhat failed:\n", *failures]
    for facts in ("machine", "versions"):
        for listed, names in _alike(rows, facts).items():
            parts.append(f"\n{facts.capitalize()} of {', '.join(names)}: {listed}.")
    parts += ["", *(f"    {row['command']}" for row in rows)]
    return "\n".join(parts) + "\n"


def _share(survived: int, tried: int) -> str:
    """Return the percentage, rounded down, so that a single failure never gives 100."""
    return f"{int(1e4 * survived / max(tried, 1)) / 100:g} %"


def _alike(rows: Sequence[Mapping[str, Any]], facts: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        listed = ", ".join(f"{name} {value}" for name, value in row[facts].items() if value is not None)
        found.setdefault(listed, []).append(row["name"])
    return found


def _held(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["campaigns"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no campaigns ({error!r}). Delete it, or name another folder.") from error
    return list(rows)
