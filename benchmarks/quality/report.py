"""Result files of the quality benchmark: JSON, CSV and Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.quality.run import QualityRun
from benchmarks.quality.wordings import KINDS
from benchmarks.result_content import merged_content, provenance_markdown
from promptembedder.storage import write_csv, write_json, write_text

__all__ = ["quality_content", "quality_markdown", "quality_with_held", "write_quality"]

_NOT_IN_JSON = ("key", "fallbacks")
# settings that may differ between the commands that fill one file
_MAY_DIFFER = ("readers", "methods", "timed", "seeds", "work")
_COLUMNS = ("method", "budget", "seed", "steps", "seconds", "mean")


def quality_content(runs: Sequence[QualityRun], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `quality.json`. Other fallbacks for unseen instructions become separate runs."""
    rows = []
    for run in runs:
        row = {name: value for name, value in asdict(run).items() if name not in _NOT_IN_JSON}
        rows.append(row)
        for name, scores in run.fallbacks.items():
            mean = statistics.fmean(scores.values())
            rows.append({**row, "method": name, "scores": scores, "mean": mean, "curve": [], "held_out": {}})
    return {**provenance, "runs": rows}


def quality_with_held(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` merged with the other runs of the results in `folder`.

    Raises:
        ConfigError: If those runs have other settings or are from another machine.
    """
    return merged_content(folder / "quality.json", content, may_differ=_MAY_DIFFER, identity=_identity)


def _identity(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["reader"], run["method"], run["budget"], run["seed"]


def write_quality(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    """Write `quality.json`, `.csv` and `.md` into `folder`, and return their paths."""
    paths = [folder / f"quality.{ending}" for ending in ("json", "csv", "md")]
    write_json(paths[0], content)
    rows = [{**run, **run["scores"]} for run in content["runs"]]
    write_csv(paths[1], rows, ["reader", *_COLUMNS, *_tasks(content)])
    write_text(paths[2], quality_markdown(content))
    return paths


def quality_markdown(content: Mapping[str, Any]) -> str:
    """Return Markdown tables for each reader, best mean first, then wordings, machine, versions and command."""
    parts = []
    for reader in dict.fromkeys(run["reader"] for run in content["runs"]):
        runs = sorted((run for run in content["runs"] if run["reader"] == reader), key=lambda run: -run["mean"])
        header = [*_COLUMNS, *_tasks(content)]
        cells = [[_shown(run["scores"].get(name, run.get(name))) for name in header] for run in runs]
        parts += [f"### {reader}", markdown_table(header, cells), *_wordings(runs)]
    settings = content["settings"]
    parts += [
        "Mean of the tasks, 0..100, under instructions that training did not see; at most "
        f"{settings['limit']} rows of each task. Trained on {settings['batch_size']} rows of one task a step, at most "
        f"{settings['rows']} rows of each. Seconds are of training steps alone; budget `seconds` means as many steps "
        "as fit into the time of the first LoRA.\n",
        *provenance_markdown(content),
    ]
    return "\n".join(parts)


def _wordings(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    scored = [run for run in runs if run["held_out"]]
    if not scored:
        return []
    names = ("method", "budget", "seed")
    # by position: runs stored before version 0.2 have another name for the last kind
    cells = [[_shown(value) for value in (*(run[name] for name in names), *run["held_out"].values())] for run in scored]
    return [
        "Held-out rows of the trained tasks, nDCG@10 x 100, by what queries are read under (`others`: another task's "
        "instruction):\n",
        markdown_table([*names, *KINDS], cells),
    ]


def _tasks(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for run in content["runs"] for name in run["scores"]))


def _shown(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "" if value is None else str(value)
