"""Report of the corpus benchmark."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.result_content import provenance_markdown
from promptembedder.storage import write_json, write_text

__all__ = ["corpus_markdown", "write_corpus"]

_NOTES = """\
A tiny model of random weights, rows of two to five words, so that what is beside the model's own work shows.
**Seconds** begin when the corpus has been read once for its plan, and end with the last shard; loading of models and
the start of Ray are in them. **Driver**: the most memory of the command's own process.
"""

_FAULT_NOTES = """\
Each once a random share of the shards is finished, or on a disk with room for that share; then the same command again.
**Hit**: the run was not over before. **Strays**: unfinished files left at the end.
"""
_WORDS = {
    "worker": "a worker killed (-9)",
    "driver": "the command killed (-9)",
    "disk": "the disk full",
}


def corpus_markdown(content: Mapping[str, Any]) -> str:
    """Return Markdown tables of all measurements with their provenance."""
    parts = [
        _speed(content["rows"]) if content["rows"] else "",
        _faults(content["faults"]) if content["faults"] else "",
        *provenance_markdown(content),
    ]
    return "\n".join(part for part in parts if part)


def write_corpus(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the JSON file and the Markdown page, and return their paths.

    Rows or faults that the current command did not measure keep their values from the existing file.
    """
    files = [folder / "corpus.json", folder / "corpus.md"]
    if files[0].is_file():
        content = _with_held(json.loads(files[0].read_text(encoding="utf-8")), content)
    write_json(files[0], dict(content))
    write_text(files[1], corpus_markdown(content))
    return files


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    header = [
        "rows",
        "engine",
        "workers",
        "plan [s]",
        "seconds",
        "rows a second",
        "driver [MB]",
        "same shards as local",
    ]
    lines = [
        [
            f"{row['rows']:,}",
            row["engine"],
            str(row["workers"]),
            f"{row['seconds'] - row['embedding_seconds']:.1f}",
            f"{row['embedding_seconds']:.1f}",
            f"{row['rows_per_second']:.0f}",
            str(row["driver_peak_megabytes"]),
            "yes" if row["same_shards_as_local"] else "NO",
        ]
        for row in rows
    ]
    return f"{markdown_table(header, lines)}\n{_NOTES}"


def _faults(faults: Sequence[Mapping[str, Any]]) -> str:
    kinds = Counter((fault["fault"], fault["engine"]) for fault in faults)
    header = ["fault", "engine", "tried", "hit", "lost", "doubled", "broken shards", "strays", "same as undisturbed"]
    lines = []
    for (kind, engine), tried in kinds.items():
        matching = [fault for fault in faults if (fault["fault"], fault["engine"]) == (kind, engine)]
        totals = [
            str(sum(int(fault[name]) for fault in matching))
            for name in ("hit", "lost", "doubled", "broken_shards", "strays")
        ]
        same = sum(bool(fault["same_shards_as_undisturbed"]) for fault in matching)
        lines.append([_WORDS[kind], engine, str(tried), *totals, f"{same} of {tried}"])
    return f"{markdown_table(header, lines)}\n{_FAULT_NOTES}"


def _with_held(held: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: held[name] for name in ("rows", "faults") if held[name] and not content[name]}
    if not merged or held["machine"] != content["machine"]:
        return dict(content)
    return {**content, **merged, "commands": list(dict.fromkeys([*held["commands"], *content["commands"]]))}
