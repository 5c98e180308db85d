"""`promptembedder evaluate MODEL --aspects FILE`: does the instruction decide what a vector means?"""

import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, gc_paused
from promptembedder.storage import describe_machine, versions, write_json

if TYPE_CHECKING:  # slow imports that `--help` does not need
    from promptembedder.evaluation.aspects import AspectScore
    from promptembedder.model import LoadedEncoder

__all__ = ["evaluate_aspects", "write_record"]


def evaluate_aspects(
    loaded: "LoadedEncoder", path: Path, report: Report, *, name: str, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Score the aspects of a file, print the table and return the record for a results file.

    Args:
        name: The model as the user calls it.
        limit: Triplets of each aspect. If None, all.
    """
    with gc_paused():  # seconds
        from promptembedder.evaluation.aspects import aspect_scores, read_aspects

    scores = aspect_scores(
        loaded.model,
        read_aspects(path, limit=limit),
        takes_instructions=loaded.takes_instructions,
        batch_size=batch_size,
    )
    report.print(_table(scores, title=f"{escape(name)} on {escape(path.name)}"))
    return {
        "model": name,
        "provenance": loaded.provenance,
        "takes_instructions": loaded.takes_instructions,
        "means": {kind: _means([score for score in scores if score.kind == kind]) for kind in _kinds(scores)},
        "aspects": [asdict(score) for score in scores],
        "versions": versions(),
        "machine": {**describe_machine(), "device": str(loaded.model.device)},
        "command": shlex.join(sys.argv),
    }


def write_record(record: dict[str, Any], output: Path | None, report: Report) -> None:
    """Write the results file if one is named, and print the record as JSON if asked for."""
    if output is not None:
        write_json(output, record)
        report.print(f"written: {escape(str(output))}")
    report.result(record)


def _kinds(scores: "Sequence[AspectScore]") -> list[str]:
    return list(dict.fromkeys(score.kind for score in scores))


def _means(scores: "Sequence[AspectScore]") -> dict[str, float | None]:
    values = {
        "own": [score.own for score in scores],
        "foreign": [score.foreign for score in scores if score.foreign is not None],
        "unseen_wording": [score.unseen_wording for score in scores if score.unseen_wording is not None],
    }
    return {name: statistics.fmean(column) if column else None for name, column in values.items()}


def _table(scores: "Sequence[AspectScore]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("corpus", "attribute"):
        table.add_column(name, overflow="fold")
    for name in ("own", "others'", "unseen wording", "triplets"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in _kinds(scores):
        rows = [score for score in scores if score.kind == kind]
        for score in rows:
            shares = map(_number, (score.own, score.foreign, score.unseen_wording))
            table.add_row(escape(score.corpus), escape(score.attribute), *shares, str(score.triplets))
        shares = map(_number, _means(rows).values())
        table.add_row(f"mean, {escape(kind)}", "", *shares, "", style="bold", end_section=True)
    table.caption = "percent of conflict triplets; 50 ignores the instruction"
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
