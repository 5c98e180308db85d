"""Score against training time and memory of a training step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptembedder import extras
from promptembedder.plots.style import MethodStyle, legend_below, method_styles, new_figure, pictures, write_pictures
from promptembedder.storage import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CostPoint", "plot_score_against_cost"]

_GIB = 1 << 30


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
            _draw(axes, trained, cost, styles)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        for point in points:
            if point.seconds == 0:
                _level(grid, point)
        grid[0].set_ylabel(score_label)
        if title:
            figure.suptitle(title)
        legend_below(
            figure, [_handle(*one) for one in styles.items()], columns=2 if len(panels) == 1 else 3, line_length=1.2
        )
        files = write_pictures(figure, path_stem)
    table = path_stem.with_name(f"{path_stem.name}.csv")
    write_csv(table, [asdict(point) for point in points], ["method", "seed", "score", "seconds", "peak_bytes"])
    return [*files, table]


def _draw(
    axes: "Axes",
    points: Sequence[CostPoint],
    cost: Callable[[CostPoint], float | None],
    styles: dict[str, MethodStyle],
) -> None:
    for point in points:
        place = cost(point)
        if place is not None:
            style = styles[point.method]
            look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "fillstyle": style.fill}
            axes.plot([place], [point.score], linestyle="none", markersize=9, **look)


def _level(grid: Sequence["Axes"], point: CostPoint) -> None:
    for axes in grid:
        axes.axhline(point.score, color="#444444", linestyle=(0, (1, 1.5)), linewidth=1.0)
    last = grid[-1]
    last.text(
        0.6,  # few points are in the middle of the memory axis, and labels are below points
        point.score,
        point.method,
        transform=last.get_yaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=9,
        color="#444444",
    )


def _handle(name: str, style: MethodStyle) -> Any:
    line = extras.require("matplotlib.lines", extra="plots").Line2D
    return line([], [], label=name, color=style.colour, marker=style.marker, fillstyle=style.fill, linestyle="none")
