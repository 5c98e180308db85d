"""Report of the serving benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.result_content import provenance_markdown
from benchmarks.serving.servers import OURS
from promptembedder.storage import write_json, write_text

__all__ = ["serving_markdown", "write_serving"]

Row = Mapping[str, Any]

_NOTES = """\
An untrained model; the others embed with the same LLM, mean pooling, in the same number format. All servers run all the
time and take turns; the load generator runs beside them on the same cores.

- **mixed**: clients that each send one request after the other, with texts of 16 to 512 tokens.
- **eight instructions**: the same texts under eight instructions; servers that take none get each before the texts.
- **x**: this server's rate in that of `promptembedder`, in one request where there are two ways.
- **overload**: requests arrive at random times at a multiple of the capacity that was measured; every vector is
  compared with the one that the model gives without a server.
"""


def serving_markdown(content: Mapping[str, Any]) -> str:
    """Return Markdown tables of all measurements with their provenance."""
    rows: list[Row] = list(content["rows"])
    parts = [
        *(
            _rates(
                [row for row in rows if row.get("texts") == count], f"mixed, {count} a request", "requests_per_second"
            )
            for count in dict.fromkeys(row["texts"] for row in rows if row["kind"] == "mixed")
        ),
        _rates([row for row in rows if row["kind"] == "instructions"], "eight instructions", "vectors_per_second"),
        _overhead([row for row in rows if row["kind"] == "one client"]),
        *(_overload(row) for row in rows if row["kind"] == "overload"),
        _NOTES,
        *provenance_markdown(content),
    ]
    return "\n".join(part for part in parts if part)


def write_serving(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the JSON file and the Markdown page, and return their paths."""
    files = [folder / "serve.json", folder / "serve.md"]
    write_json(files[0], dict(content))
    write_text(files[1], serving_markdown(content))
    return files


def _rates(rows: Sequence[Row], title: str, measure: str) -> str:
    if not rows:
        return ""
    best = next(row[measure] for row in rows if row["server"] == OURS)
    header = [title, f"{measure.split('_')[0]} a second", "x", "p50 [s]", "p99 [s]", "answers"]
    lines = [
        [
            f"{row['server']}, {row['way']}" if "way" in row else row["server"],
            f"{row[measure]:.2f}",
            f"{best / row[measure]:.2f}" if row[measure] else "",
            _seconds(row["p50_seconds"]),
            _seconds(row["p99_seconds"]),
            _counts(row["statuses"]),
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


def _overhead(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    header = ["one client, one text", "served [ms]", "offline [ms]", "difference [ms]"]
    lines = [
        [
            f"{row['tokens']} tokens",
            *(f"{1000 * row[name]:.1f}" for name in ("served_seconds", "offline_seconds", "overhead_seconds")),
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


def _overload(row: Row) -> str:
    header = ["overload", ""]
    lines = [
        ["requests", f"{row['requests']} in {row['seconds']:.0f} s, {row['rate']:.1f} a second"],
        ["answers by status", _counts(row["statuses"])],
        ["vectors of another text", str(row.get("mixed_up", "not counted"))],
        ["cosine to the offline one below 0.9999", f"{row['wrong_vectors']}; the lowest {row['lowest_cosine']:.6f}"],
        ["p99 of those answered", f"{row['p99_seconds']:.2f} s"],
        ["p99 of those refused", f"{1000 * row['refused_p99_seconds']:.0f} ms"],
        ["memory", f"{row['rss_after_warmup'] / 1e6:.0f} MB, {100 * row['rss_growth']:+.1f} % afterwards"],
    ]
    return markdown_table(header, lines)


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in statuses.items())


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"
