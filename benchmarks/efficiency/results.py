"""Rows, ratios and report of the efficiency benchmark."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.efficiency.cell import CellOutcome
from benchmarks.memory import GIB
from promptembedder.storage import write_csv, write_json, write_text

__all__ = ["EfficiencyResult", "efficiency_markdown", "measured_row", "ratios_of", "skipped_row", "write_efficiency"]

OUT_OF_MEMORY = "out of memory"
REFERENCE = "promptembedder"

Row = dict[str, Any]

_COLUMNS = (
    "method",
    "reader",
    "prompter",
    "device",
    "dtype",
    "length",
    "batch",
    "step_seconds",
    "step_seconds_min",
    "step_seconds_iqr",
    "step_cpu_seconds",
    "tokens_per_second",
    "peak_bytes",
    "baseline_bytes",
    "weights_bytes",
    "optimizer_bytes",
    "activation_bytes",
    "trained_parameters",
    "memory_source",
    "repeats",
    "error",
)

_NOTES = """\
One step: forward, InfoNCE with in-batch negatives over `batch` anchors and as many positives under one instruction,
backward, gradient clipping, AdamW; through the library's own encoders. Texts are random tokens of exactly `length`; a
method's own instruction and soft tokens come on top. Tokenisation and data loading are left out.

- **step**: median over the repeats, with the interquartile range; methods take turns, one process computing at a time.
- **CPU**: processor seconds of all threads, median; they hardly change when the machine has other work to do.
- **tokens/s**: text tokens of anchors and positives.
- **peak**: CPU: resident set of a fresh process, Python and libraries included; GPU: what torch's allocator gave out.
- **weights**: parameters and buffers of all models in the step, frozen ones too.
- **activations**: peak minus what was in use before the step (libraries, weights, AdamW's moments): activations kept
  for the backward pass, gradients and temporary buffers. On a CPU the heap adds some MiB of noise.
- **time x, CPU x, activations x, peak x**: this method's number over that of `promptembedder` at the same length and
  batch. Times are compared round by round: the median of the quotients, not the quotient of the medians.
"""


@dataclass(frozen=True, kw_only=True)
class EfficiencyResult:
    """Results of a run.

    Attributes:
        rows: One row for each requested method, length and batch.
        ratios: Costs of the other methods divided by the cost of the method of this library.
        largest_batch: Largest batch by method and length. `how` is `searched`, `fitted` (not tested) or `unknown`.
    """

    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row]
    ratios: list[Row]
    largest_batch: list[Row]

    def content(self) -> dict[str, Any]:
        """Return the result as plain mappings and lists."""
        return {
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "rows": self.rows,
            "largest_batch": self.largest_batch,
            "ratios": self.ratios,
        }


def measured_row(key: Mapping[str, Any], outcome: CellOutcome) -> Row:
    """Return the row of one method at one length and batch. `key` contains its first fields."""
    row = _place(key)
    memory = outcome.memory
    if memory is None:
        return {**row, "error": OUT_OF_MEMORY}
    if outcome.times:
        seconds = [taken.seconds for taken in outcome.times]
        cpu_seconds = [taken.cpu_seconds for taken in outcome.times if taken.cpu_seconds is not None]
        median = statistics.median(seconds)
        row |= {
            "step_seconds": median,
            "step_seconds_min": min(seconds),
            "step_seconds_iqr": _interquartile_range(seconds),
            "step_seconds_all": seconds,
            "step_cpu_seconds": statistics.median(cpu_seconds) if cpu_seconds else None,
            "step_cpu_seconds_all": cpu_seconds,
            "tokens_per_second": 2 * key["batch"] * key["length"] / median,
        }
    return {
        **row,
        "peak_bytes": memory.peak_bytes,
        "baseline_bytes": memory.baseline_bytes,
        "weights_bytes": memory.weights_bytes,
        "optimizer_bytes": memory.optimizer_bytes,
        "activation_bytes": memory.activation_bytes,
        "trained_parameters": memory.trained_parameters,
        "memory_source": memory.source,
    }


def skipped_row(key: Mapping[str, Any], failed: int) -> Row:
    """Return the row of a batch that was skipped because the smaller batch `failed` ran out of memory."""
    return {**_place(key), "error": f"skipped: batch {failed} ran out of memory"}


def ratios_of(rows: Sequence[Row]) -> list[Row]:
    """Return the ratio of every other method to `promptembedder` where both were measured.

    Times are compared within each round, so that the slowdown of a whole round cancels.
    """
    reference = {(row["length"], row["batch"]): row for row in rows if row["method"] == REFERENCE}
    found = []
    for row in rows:
        base = reference.get((row["length"], row["batch"]))
        if row["method"] == REFERENCE or base is None or "error" in row or "error" in base:
            continue
        ratio = {name: row[name] for name in ("method", "length", "batch")}
        for name in ("step_seconds", "step_cpu_seconds"):
            ratio[name] = _ratio_in_rounds(row[f"{name}_all"], base[f"{name}_all"])
        for name in ("activation_bytes", "peak_bytes"):
            ratio[name] = row[name] / base[name] if base[name] > 0 else None
        found.append(ratio)
    return found


def write_efficiency(result: EfficiencyResult, folder: Path) -> list[Path]:
    """Write `efficiency.json`, `.csv` and `.md` into `folder`, and return their paths."""
    paths = [folder / f"efficiency.{kind}" for kind in ("json", "csv", "md")]
    write_json(paths[0], result.content())
    write_csv(paths[1], result.rows, _COLUMNS)
    write_text(paths[2], _page(result))
    return paths


def efficiency_markdown(content: Mapping[str, Any]) -> str:
    """Return the Markdown page of the content of `efficiency.json`."""
    return _page(EfficiencyResult(**content))


def _place(key: Mapping[str, Any]) -> Row:
    names = ("method", "reader", "prompter", "device", "dtype", "length", "batch", "repeats")
    return {name: key[name] for name in names}


def _ratio_in_rounds(seconds: Sequence[float], base: Sequence[float]) -> float | None:
    quotients = [own / other for own, other in zip(seconds, base, strict=False) if other > 0]
    return statistics.median(quotients) if quotients else None


def _interquartile_range(seconds: Sequence[float]) -> float:
    if len(seconds) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return upper - lower


# -- the page -----------------------------------------------------------------------------------------------------


def _page(result: EfficiencyResult) -> str:
    facts, versions = result.machine, result.versions
    gpu = f"{facts['gpu']}; " if facts.get("gpu") else ""
    settings = result.settings
    return "\n".join(
        [
            "### Cost of a training step",
            "",
            f"Reader `{settings['reader']}`, prompter `{settings['prompter']}`, {settings['dtype']} on "
            f"{settings['device']}; {settings['repeats']} repeats.",
            "",
            _NOTES,
            _table(result),
            "#### Largest batch that fits",
            "",
            _largest(result.largest_batch),
            "#### How it was measured",
            "",
            f"    {result.command}",
            "",
            f"{gpu}{facts['cpu']}, {facts['cores']} of {facts['cpus']} cores, {facts['threads']} threads, "
            f"{facts['memory_bytes'] / GIB:.1f} GiB; {facts['platform']}.",
            "",
            f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
            "",
        ]
    )


def _table(result: EfficiencyResult) -> str:
    header = ["method", "length", "batch", "step [s]", "IQR [s]", "CPU [s]", "tokens/s", "peak [GiB]", "weights [GiB]"]
    header += ["activations [GiB]", "time x", "CPU x", "activations x", "peak x"]
    ratios = {(row["method"], row["length"], row["batch"]): row for row in result.ratios}
    lines = []
    for row in sorted(result.rows, key=lambda row: (row["length"], row["batch"])):  # stable sort
        start = [row["method"], str(row["length"]), str(row["batch"])]
        if "error" in row:
            lines.append([*start, row["error"], *[""] * (len(header) - 4)])
            continue
        sizes = [f"{row[name] / GIB:.3f}" for name in ("peak_bytes", "weights_bytes", "activation_bytes")]
        times = [
            f"{row['step_seconds']:.3g}",
            f"{row['step_seconds_iqr']:.2g}",
            _number(row["step_cpu_seconds"], ".3g"),
        ]
        times.append(f"{row['tokens_per_second']:.0f}")
        ratio = ratios.get((row["method"], row["length"], row["batch"]), {})
        names = ("step_seconds", "step_cpu_seconds", "activation_bytes", "peak_bytes")
        lines.append([*start, *times, *sizes, *(_number(ratio.get(name), ".2f") for name in names)])
    return markdown_table(header, lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _largest(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["method"],
            str(row["length"]),
            f"{row['memory_bytes'] / GIB:.1f}",
            "" if row["batch"] is None else str(row["batch"]),
            row["how"],
        ]
        for row in rows
    ]
    words = (
        "searched: tried, true to a sixteenth. fitted: a straight line through the peaks of the two largest batches "
        "measured, not tried.\n\n"
    )
    return words + markdown_table(["method", "length", "memory [GiB]", "largest batch", "how"], lines)
