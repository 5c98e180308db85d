"""Report of the speed benchmark."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.result_content import provenance_markdown
from benchmarks.speed.cases import BARE, EXITS, HELD, ONE_BY_ONE, OURS, READ, SENTENCE_TRANSFORMERS
from promptembedder.storage import write_csv, write_json, write_text

__all__ = ["speed_markdown", "speed_ratio", "write_speed"]

Row = Mapping[str, Any]

_COLUMNS = ("kind", "method", "length", "texts", "instructions", "soft_tokens", "tokens", "seconds")

_NOTES = """\
Encoding texts of common nouns to vectors, tokenising included, with an untrained model; seconds are the median over
the repeats, ways take turns.

- **x**: over the other way, round by round, the median of the quotients; from processor seconds on a CPU, which hardly
  change when the machine has other work to do.
- **bare forward**: the frozen LLM alone over the same texts, padded in batches of like length, without tokenising.
- **sentence-transformers**: the same LLM with last-token pooling, in its batches of 32 texts.
- **bare of the peak**: the least time that the bare forward can take at the machine's own rate of matrix products, over
  its quickest round.
"""


def speed_ratio(over: Row, of: Row) -> float:
    """Return the median over rounds of the time of `of` divided by the time of `over`."""
    name = "all_cpu_seconds" if min(*of["all_cpu_seconds"], *over["all_cpu_seconds"]) > 0.05 else "all_seconds"
    pairs = zip(of[name], over[name], strict=True)
    return statistics.median(own / other for own, other in pairs)


def speed_markdown(content: Mapping[str, Any]) -> str:
    """Return Markdown tables of all kinds of cases with their provenance."""
    rows: list[Row] = list(content["rows"])
    rates = content["rates"]
    parts = [
        _against_others(rows, rates),
        _growth(rows, "instructions", "instructions"),
        _growth(rows, "soft_tokens", "soft tokens"),
        _exits(rows),
        _epochs(rows),
        _NOTES,
        f"Best rates: {rates['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s (products with a layer's quickest matrix), "
        f"{rates['copied_bytes_per_second'] / 1e9:.1f} GB/s read and written by a copy.\n",
        *provenance_markdown({**content, "commands": [content["command"]]}),
    ]
    return "\n".join(part for part in parts if part)


def write_speed(content: Mapping[str, Any], profile: str, folder: Path) -> list[Path]:
    """Write the JSON, CSV, Markdown and profile files, and return their paths."""
    files = [folder / f"speed.{ending}" for ending in ("json", "csv", "md")] + [folder / "speed_profile.txt"]
    write_json(files[0], dict(content))
    write_csv(files[1], [{name: row[name] for name in _COLUMNS} for row in content["rows"]], _COLUMNS)
    write_text(files[2], speed_markdown(content))
    write_text(files[3], profile)
    return files


def _against_others(rows: Sequence[Row], rates: Mapping[str, Any]) -> str:
    lines = []
    for row in (row for row in rows if row["method"] == OURS and row["kind"] in ("length", "mixed", "texts")):
        others = {other["method"]: other for other in rows if _same_case(other, row)}
        ratios = [
            f"{speed_ratio(others[name], row):.2f}" if not inverse else f"{speed_ratio(row, others[name]):.2f}"
            for name, inverse in ((BARE, False), (SENTENCE_TRANSFORMERS, True))
        ]
        flops = rates["forward_flops"].get(str(row["length"])) if row["kind"] != "mixed" else None
        peak = "" if flops is None else _share(flops * row["texts"] / rates["matmul_flops_per_second"], others[BARE])
        length = f"16-{row['length']}" if row["kind"] == "mixed" else str(row["length"])
        seconds = f"{row['seconds']:.3g}"
        lines.append([length, str(row["texts"]), seconds, f"{row['tokens'] / row['seconds']:.0f}", *ratios, peak])
    header = ["tokens a text", "texts", "s", "tokens/s", "x bare forward", "x faster than s.-t.", "bare of the peak"]
    return markdown_table(header, lines) if lines else ""


def _share(floor: float, row: Row) -> str:
    return f"{100 * floor / min(row['all_seconds']):.0f} %"


def _growth(rows: Sequence[Row], kind: str, label: str) -> str:
    """Return the growth of the time relative to the first row."""
    own = [row for row in rows if row["kind"] == kind and row["method"] == OURS]
    if not own:
        return ""
    lines = [
        [str(row[kind]), str(row["texts"]), f"{row['seconds']:.3g}", f"{speed_ratio(own[0], row):.2f}"] for row in own
    ]
    table = markdown_table([label, "texts", "s", f"x {own[0][kind]}"], lines)
    alone = next((row for row in rows if row["kind"] == kind and row["method"] == ONE_BY_ONE), None)
    if alone is not None:
        base = next(row for row in own if row["instructions"] == alone["instructions"])
        table += f"\n{alone['instructions']} one by one: {speed_ratio(base, alone):.2f} times as long as together.\n"
    return table


def _exits(rows: Sequence[Row]) -> str:
    ways = {row["method"]: row for row in rows if row["kind"] == "early_exit_fraction"}
    if not ways:
        return ""
    full = ways[next(iter(EXITS))]
    lines = [
        [name, str(row["texts"]), f"{row['seconds']:.3g}", f"{speed_ratio(row, full):.2f}"]
        for name, row in ways.items()
    ]
    return markdown_table(["texts go through", "texts", "s", "x faster"], lines)


def _epochs(rows: Sequence[Row]) -> str:
    steps = {row["method"]: row for row in rows if row["kind"] == "epoch"}
    if not steps:
        return ""
    times = f"{speed_ratio(steps[HELD], steps[READ]):.2f}"
    one = steps[READ]
    lines = [
        ["texts read", str(one["texts"]), str(one["length"]), f"{one['seconds']:.3g}", times],
        ["texts held", str(one["texts"]), str(one["length"]), f"{steps[HELD]['seconds']:.3g}", "1.00"],
    ]
    return markdown_table(["training step", "texts", "tokens a text", "s", "x held"], lines)


def _same_case(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in _COLUMNS[:1] + _COLUMNS[2:7])
