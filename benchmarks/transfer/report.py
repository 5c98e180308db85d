"""Result files of the transfer benchmark: JSON, CSV and Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.quality.curve import CurvePoint
from benchmarks.result_content import merged_content, provenance_markdown
from benchmarks.transfer.benchmark import MoveRun
from promptembedder.plots import transfer_label
from promptembedder.storage import write_csv, write_json, write_text

__all__ = ["merge_results", "move_content", "move_markdown", "steps_to_share", "write_move"]

_SHARE = 0.95  # share of the native score that counts as equal
_HELD_OUT = "held-out"
# settings that may differ between the commands that fill one file
_MAY_DIFFER = ("routes", "starts", "native", "points", "work")


def move_content(runs: Sequence[MoveRun], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `move.json`: one entry for each run and point."""
    return {**provenance, "runs": [_row(run, point) for run in runs for point in run.points]}


def merge_results(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` merged with the other runs of the results in `folder`.

    Raises:
        ConfigError: If those runs have other settings or are from another machine.
    """
    return merged_content(folder / "move.json", content, may_differ=_MAY_DIFFER, identity=_identity)


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["from"], row["to"], row["method"], row["start"], row["steps"]


def _row(run: MoveRun, point: CurvePoint) -> dict[str, Any]:
    by_kind: dict[str, dict[str, float]] = {"seen": {}, "unseen": {}}
    for name, score in point.scores.items():
        kind, _, task = name.partition("/")
        by_kind[kind][task] = score
    tasks = [score for task, score in by_kind["unseen"].items() if task != _HELD_OUT]
    return {
        "from": run.source if run.method == "moved" else None,
        "to": run.target,
        "method": run.method,
        "start": run.start or None,
        "steps": point.step,
        "scores_seen": by_kind["seen"],
        "scores_unseen": by_kind["unseen"],
        "mean": statistics.fmean(tasks),
        "seconds": point.seconds,
        "trained_bytes": run.trained_bytes if point.step else 0,
    }


def steps_to_share(rows: Sequence[Mapping[str, Any]], native: float) -> int | None:
    """Return the steps of the first point with at least 95 % of the native score. None if there is none."""
    return next((row["steps"] for row in rows if row["mean"] >= _SHARE * native), None)


def write_move(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    """Write `move.json`, `.csv` and `.md` into `folder`, and return their paths."""
    paths = [folder / f"move.{ending}" for ending in ("json", "csv", "md")]
    write_json(paths[0], content)
    flat = [
        {
            **row,
            **{f"seen/{task}": score for task, score in row["scores_seen"].items()},
            **{f"unseen/{task}": score for task, score in row["scores_unseen"].items()},
        }
        for row in content["runs"]
    ]
    columns = ["from", "to", "method", "start", "steps", "mean", "seconds", "trained_bytes"]
    scores = [name for row in flat for name in row if name.startswith(("seen/", "unseen/"))]
    write_csv(paths[1], flat, [*columns, *dict.fromkeys(scores)])
    write_text(paths[2], move_markdown(content))
    return paths


def move_markdown(content: Mapping[str, Any]) -> str:
    """Return a table for each new reader: mean score over steps, and the step that reaches 95 % of the native score."""
    parts = []
    for target in dict.fromkeys(row["to"] for row in content["runs"]):
        by_label: dict[str, list[Mapping[str, Any]]] = {}
        for row in content["runs"]:
            if row["to"] == target:
                by_label.setdefault(transfer_label(row), []).append(row)
        native = by_label.get("promptembedder from scratch", [])
        goal = native[-1]["mean"] if native else None
        points = list(dict.fromkeys(row["steps"] for rows in by_label.values() for row in rows))
        header = ["to " + target, *(f"{step} steps" for step in points), "steps to 95 %", "seconds", "trained [MB]"]
        header += ["seen", "unseen"]
        cells = []
        for label, rows in by_label.items():
            means = {row["steps"]: f"{row['mean']:.1f}" for row in rows}
            there = steps_to_share(rows, goal) if goal is not None else None
            last = rows[-1]
            cells.append(
                [
                    label,
                    *(means.get(step, "") for step in points),
                    "" if there is None else str(there),
                    f"{last['seconds']:.0f}",
                    f"{last['trained_bytes'] / 1e6:.1f}",
                    *(f"{last[f'scores_{kind}'].get(_HELD_OUT, float('nan')):.1f}" for kind in ("seen", "unseen")),
                ]
            )
        parts += [markdown_table(header, cells)]
    settings = content["settings"]
    parts += [
        f"Mean of the tasks, 0..100, under instructions that training did not see; at most {settings['limit']} rows of "
        f"each. The moved model had {settings['source_steps']} steps. 95 % is of what the method reaches on the "
        "new reader from scratch at the last point; an empty field: not reached. seen, unseen: held-out rows of the "
        "training tasks at the end, nDCG@10 x 100, under a wording that training used and one that it did not.\n",
        *provenance_markdown(content),
    ]
    return "\n".join(parts)
