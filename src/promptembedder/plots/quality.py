"""Quality of methods over training time, by task, and against the cost of training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from promptembedder.plots.style import MethodStyle, legend_below, method_styles, new_figure, pictures, write_pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CostPoint",
    "QualityCurve",
    "QualityPoint",
    "TaskScorePoint",
    "plot_quality_over_time",
    "plot_score_against_cost",
    "plot_task_scores",
    "plot_transfers",
    "transfer_label",
]

_GIB = 1 << 30
_MEAN_ROW = "mean"
_LEGEND_LETTERS, _HANDLE_LETTERS = 130, 9  # characters per line below a figure of 10 inches; of a legend handle
_LEVEL: dict[str, Any] = {"color": "#444444", "linestyle": (0, (1, 1.5))}


@dataclass(frozen=True, kw_only=True)
class QualityPoint:
    """One evaluation during training.

    Attributes:
        step: Optimiser steps before the evaluation.
        seconds: Training time before the evaluation, without earlier evaluations.
        score: Higher is better.
    """

    step: int
    seconds: float
    score: float


@dataclass(frozen=True, kw_only=True)
class QualityCurve:
    """Evaluations of one training run; runs with several seeds are several curves."""

    method: str
    points: tuple[QualityPoint, ...]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskScorePoint:
    """Score of one trained model on a task."""

    task: str
    method: str
    score: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """Score and cost of one model.

    Attributes:
        seconds: Training time without evaluations. 0 for a method without training.
        peak_bytes: Peak memory of a training step. None if not measured.
    """

    method: str
    score: float
    seconds: float
    peak_bytes: int | None = None
    seed: int = 0


def plot_quality_over_time(
    curves: Sequence[QualityCurve],
    path_stem: Path,
    *,
    score_label: str = "mean score",
    title: str = "",
    references: Mapping[str, float] | None = None,
) -> list[Path]:
    """Plot scores against training seconds and steps. Return the paths of PNG and SVG.

    Lines are means over seeds at the steps of all seeds and at the mean of their seconds. Bands span the worst and the
    best seed.

    Args:
        path_stem: Path of the files without extension.
        references: Scores of methods without training by name, drawn as labelled horizontal lines.
    """
    methods = [curve.method for curve in curves]
    styles = method_styles(methods)
    with pictures():
        figure = new_figure(10.0, 4.6)
        by_time, by_step = figure.subplots(1, 2, sharey=True)
        for method in dict.fromkeys(methods):
            rows = _common_steps([curve for curve in curves if curve.method == method])
            _draw_curve(by_time, [fmean(point.seconds for point in row) for row in rows], rows, styles[method])
            _draw_curve(by_step, [row[0].step for row in rows], rows, styles[method])
        for name, score in (references or {}).items():
            for axes in (by_time, by_step):
                axes.axhline(score, linewidth=1.2, **_LEVEL)
            place = by_step.get_yaxis_transform()
            words = by_step.text(0.98, score, name, transform=place, color=_LEVEL["color"], fontsize=9, va="bottom")
            words.set_horizontalalignment("right")
        by_time.set(xlabel="training time [s]", ylabel=score_label)
        by_step.set_xlabel("training steps")
        for axes in (by_time, by_step):
            axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # do not clip the first marker
        if title:
            figure.suptitle(title)
        columns = max(1, min(4, _LEGEND_LETTERS // (max(map(len, styles)) + _HANDLE_LETTERS)))
        legend_below(figure, styles, columns=columns)
        return write_pictures(figure, path_stem)


def transfer_label(row: Mapping[str, Any]) -> str:
    """Return the name of a run of the transfer benchmark in tables and plots."""
    return f"moved from {row['from']}, {row['start']}" if row["method"] == "moved" else f"{row['method']} from scratch"


def plot_transfers(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Plot the mean task score over steps and seconds, one pair of figures per target reader."""
    files: list[Path] = []
    for target in dict.fromkeys(row["to"] for row in content["runs"]):
        by_label: dict[str, list[QualityPoint]] = {}
        for row in content["runs"]:
            if row["to"] == target:
                point = QualityPoint(step=row["steps"], seconds=row["seconds"], score=row["mean"])
                by_label.setdefault(transfer_label(row), []).append(point)
        curves = [QualityCurve(method=label, points=tuple(points)) for label, points in by_label.items()]
        stem = folder / f"move_to_{target.replace(':', '-').replace('/', '-')}"
        files += plot_quality_over_time(curves, stem, title=f"to {target}")
    return files


def plot_task_scores(
    scores: Sequence[TaskScorePoint], path_stem: Path, *, score_label: str = "score", title: str = ""
) -> list[Path]:
    """Plot one row per task with one dot per method, and the mean over tasks. Return the paths of PNG and SVG.

    Dots are means over seeds, bars span the worst and the best seed. The mean over tasks is drawn for methods with a
    score on every task.

    Args:
        path_stem: Path of the files without extension.
    """
    tasks = list(dict.fromkeys(point.task for point in scores))
    styles = method_styles([point.method for point in scores])
    rows = [*tasks, _MEAN_ROW] if len(tasks) > 1 else tasks
    height_of_row = 0.12 * len(styles) + 0.14
    with pictures():
        figure = new_figure(8.0, 1.6 + 0.25 * ((len(styles) + 2) // 3) + height_of_row * len(rows))
        axes = figure.subplots()
        for place, task in enumerate(rows):
            for turn, (method, style) in enumerate(styles.items()):
                by_seed = _by_seed(scores, method, tasks if task == _MEAN_ROW else [task])
                offset = (turn - (len(styles) - 1) / 2) / (len(styles) + 0.6)
                _draw_dot(axes, place + offset, by_seed, style)
        for place in range(len(rows) - 1):
            is_last = rows[place + 1] == _MEAN_ROW
            axes.axhline(place + 0.5, color="#444444" if is_last else "#DDDDDD", linewidth=1.2 if is_last else 0.6)
        axes.set(xlabel=score_label, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [f"mean of {len(tasks)}" if row == _MEAN_ROW else row for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        if title:
            axes.set_title(title)
        legend_below(figure, styles, columns=3, line=False)
        return write_pictures(figure, path_stem)


def plot_score_against_cost(
    points: Sequence[CostPoint],
    path_stem: Path,
    *,
    score_label: str = "mean score",
    memory_label: str = "peak memory of a step [GiB]",
    title: str = "",
) -> list[Path]:
    """Plot scores against seconds and, if measured, against memory. Return the paths of PNG, SVG and CSV.

    Methods without training are horizontal lines.

    Args:
        path_stem: Path of the files without extension.
    """
    trained = [point for point in points if point.seconds > 0]
    styles = method_styles([point.method for point in trained])
    panels: list[tuple[str, Callable[[CostPoint], float | None]]] = [("training time [s]", lambda point: point.seconds)]
    if any(point.peak_bytes for point in trained):
        panels.append((memory_label, lambda point: point.peak_bytes / _GIB if point.peak_bytes else None))
    with pictures():
        figure = new_figure(5.2 * len(panels), 4.8)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, cost) in zip(grid, panels, strict=True):
            for point in trained:
                place = cost(point)
                if place is not None:
                    axes.plot([place], [point.score], markersize=9, **styles[point.method].look(line=False))
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        for point in points:
            if point.seconds == 0:
                _draw_level(grid, point)
        grid[0].set_ylabel(score_label)
        if title:
            figure.suptitle(title)
        legend_below(figure, styles, columns=2 if len(panels) == 1 else 3, line=False)
        rows = [asdict(point) for point in points]
        return write_pictures(figure, path_stem, rows, ["method", "seed", "score", "seconds", "peak_bytes"])


def _common_steps(curves: Sequence[QualityCurve]) -> list[tuple[QualityPoint, ...]]:
    """Return one tuple of points, one per curve, for each step that all curves contain."""
    by_step = [{point.step: point for point in curve.points} for curve in curves]
    common = set.intersection(*(set(points) for points in by_step))
    return [tuple(points[step] for points in by_step) for step in sorted(common)]


def _draw_curve(
    axes: "Axes", places: Sequence[float], rows: Sequence[tuple[QualityPoint, ...]], style: MethodStyle
) -> None:
    scores = [[point.score for point in row] for row in rows]
    means = [fmean(row) for row in scores]
    # enough markers to distinguish lines, few enough to keep them separate
    every = max(1, len(rows) // 8)
    axes.plot(places, means, markevery=every, **style.look())
    if rows and len(rows[0]) > 1:
        lows, highs = [min(row) for row in scores], [max(row) for row in scores]
        axes.fill_between(places, lows, highs, color=style.colour, alpha=0.15, linewidth=0)


def _by_seed(scores: Sequence[TaskScorePoint], method: str, tasks: Sequence[str]) -> list[float]:
    """Return the mean over `tasks` for each seed with a score on every task."""
    of_seed: dict[int, dict[str, float]] = {}
    for point in scores:
        if point.method == method and point.task in tasks:
            of_seed.setdefault(point.seed, {})[point.task] = point.score
    return [fmean(found.values()) for found in of_seed.values() if len(found) == len(tasks)]


def _draw_dot(axes: "Axes", place: float, by_seed: Sequence[float], style: MethodStyle) -> None:
    if not by_seed:
        return
    mean = fmean(by_seed)
    if len(by_seed) > 1:
        axes.plot([min(by_seed), max(by_seed)], [place, place], color=style.colour, linewidth=1.2)
    axes.plot([mean], [place], markersize=7, **style.look(line=False))


def _draw_level(grid: Sequence["Axes"], point: CostPoint) -> None:
    for axes in grid:
        axes.axhline(point.score, linewidth=1.0, **_LEVEL)
    last = grid[-1]
    last.text(
        0.6,  # few points are in the middle of the memory axis, and labels are below points
        point.score,
        point.method,
        transform=last.get_yaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=9,
        color=_LEVEL["color"],
    )
