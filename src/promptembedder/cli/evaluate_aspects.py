"""`promptembedder evaluate MODEL --aspects FILE` or `--questions FILE`: does the instruction decide?"""

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
    from promptembedder.evaluation.aspects import AnswerChoiceScore, AspectScore
    from promptembedder.model import LoadedEncoder

__all__ = ["evaluate_aspects", "evaluate_questions", "write_record"]


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
    means = {kind: _means([score for score in scores if score.kind == kind]) for kind in _kinds(scores)}
    return _record(loaded, name, {"means": means, "aspects": [asdict(score) for score in scores]})


def evaluate_questions(
    loaded: "LoadedEncoder", paths: Sequence[Path], report: Report, *, name: str, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Score answer choice on each file, print the table and return the record for a results file.

    Args:
        name: The model as the user calls it.
        limit: Texts of each file. If None, all.
    """
    with gc_paused():  # seconds
        from promptembedder.evaluation.aspects import answer_choice_score, read_questions

    files = {path.name.split(".")[0]: read_questions(path, limit=limit) for path in paths}
    scores = [
        answer_choice_score(
            loaded.model, rows, name=file, takes_instructions=loaded.takes_instructions, batch_size=batch_size
        )
        for file, rows in files.items()
    ]
    report.print(_questions_table(scores, title=f"{escape(name)}, answer choice"))
    return _record(loaded, name, {"questions": [{**asdict(score), "gain": score.gain} for score in scores]})


def _record(loaded: "LoadedEncoder", name: str, scores: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": name,
        "provenance": loaded.provenance,
        "takes_instructions": loaded.takes_instructions,
        **scores,
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
        "others": [score.others for score in scores if score.others is not None],
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
            shares = map(_number, (score.own, score.others, score.unseen_wording))
            table.add_row(escape(score.corpus), escape(score.attribute), *shares, str(score.triplets))
        shares = map(_number, _means(rows).values())
        table.add_row(f"mean, {escape(kind)}", "", *shares, "", style="bold", end_section=True)
    table.caption = "percent of conflict triplets; 50 ignores the instruction"
    return table


def _questions_table(scores: "Sequence[AnswerChoiceScore]", *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("file", overflow="fold")
    for column in ("right", "blind", "of the way", "questions"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        shares = map(_number, (score.accuracy, score.blind, score.gain))
        table.add_row(escape(score.name), *shares, str(score.questions))
    table.caption = "percent of questions whose own answer is nearest; blind: expected without reading the question"
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
