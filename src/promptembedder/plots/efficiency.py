"""Time and memory of a training step by length and batch size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptembedder import extras
from promptembedder.plots.style import MethodStyle, legend_below, method_styles, new_figure, pictures, write_pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["StepPoint", "plot_memory", "plot_step_time"]

_GIB = 1 << 30
_CROSS_HEIGHT = 0.055  # fraction of the panel height

Value = Callable[["StepPoint"], float | None]


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """Cost of a training step at one length and batch size. All costs are None if the step ran out of memory.

    Attributes:
        length: Tokens per text.
        batch: Rows per step.
        seconds: Duration of the step.
        activation_bytes: Memory in addition to weights and optimiser state.
        peak_bytes: Peak memory of the process.
    """

    method: str
    length: int
    batch: int
    seconds: float | None
    activation_bytes: int | None
    peak_bytes: int | None


def plot_step_time(points: Sequence[StepPoint], path_stem: Path, *, title: str = "") -> list[Path]:
    """Plot seconds per step against the batch size, one panel per length. Return the paths of PNG and SVG.

    Args:
        path_stem: Path of the files without extension.
    """
    return _plot(points, [("step time [s]", lambda point: point.seconds)], path_stem, title)


def plot_memory(points: Sequence[StepPoint], path_stem: Path, *, title: str = "") -> list[Path]:
    """Plot activation memory and peak memory against the batch size, one column per length.

    Args:
        path_stem: Path of the files without extension.
    """
    rows: list[tuple[str, Value]] = [
        ("activations [GiB]", lambda point: _gib(point.activation_bytes)),
        ("peak [GiB]", lambda point: _gib(point.peak_bytes)),
    ]
    return _plot(points, rows, path_stem, title)


def _plot(points: Sequence[StepPoint], rows: Sequence[tuple[str, Value]], path_stem: Path, title: str) -> list[Path]:
    lengths = sorted({point.length for point in points})
    batches = sorted({point.batch for point in points})
    styles = method_styles([point.method for point in points])
    legend_columns = min(len(styles) + 1, 4)
    with pictures():
        width = 1.2 + max(3.1 * len(lengths), 2.1 * legend_columns)
        figure = new_figure(width, 1.2 + 3.0 * len(rows))
        grid = figure.subplots(len(rows), len(lengths), sharex=True, sharey="row", squeeze=False)
        for (label, value), panels in zip(rows, grid, strict=True):
            failures = [
                _draw_panel(axes, [point for point in points if point.length == length], value, styles)
                for length, axes in zip(lengths, panels, strict=True)
            ]
            _finish_scale(panels[0], max(failures))
            panels[0].set_ylabel(label)
        for length, axes in zip(lengths, grid[0], strict=True):
            axes.set_title(f"{length} tokens a text")
        for axes in grid[-1]:
            axes.set_xlabel("batch [pairs]")
            axes.set_xticks(batches, [str(batch) for batch in batches])
            axes.set_xticks([], minor=True)
        if title:
            figure.suptitle(title)
        legend_below(figure, _handles(styles, points), columns=legend_columns)
        return write_pictures(figure, path_stem)


def _draw_panel(axes: "Axes", points: Sequence[StepPoint], value: Value, styles: dict[str, MethodStyle]) -> int:
    """Draw one line per method. Return the number of lines that end because memory ran out."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    failures = 0
    for method, style in styles.items():
        own = sorted((point for point in points if point.method == method), key=lambda point: point.batch)
        known = [(point.batch, number) for point in own if (number := value(point)) is not None and number > 0]
        axes.plot(
            [batch for batch, _ in known],
            [number for _, number in known],
            color=style.colour,
            marker=style.marker,
            fillstyle=style.fill,
            linestyle=style.line,
        )
        failed = [point.batch for point in own if point.seconds is None]
        if failed:  # stacked crosses above the first batch size that ran out of memory
            place = 1 - _CROSS_HEIGHT * (failures + 0.5)
            axes.plot(failed[0], place, "x", color=style.colour, transform=axes.get_xaxis_transform(), mew=1.8)
            failures += 1
    return failures


def _finish_scale(axes: "Axes", failures: int) -> None:
    """Format the vertical axis with plain numbers and reserve space at its top for `failures` crosses."""
    ticker = extras.require("matplotlib.ticker", extra="plots")
    low, high = axes.get_ylim()
    axes.set_ylim(low, low * (high / low) ** (1 / (1 - _CROSS_HEIGHT * failures)))
    if high < 5 * low:  # ticks of a logarithmic scale may all be outside
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5))
    else:
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda number, _: f"{number:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _handles(styles: dict[str, MethodStyle], points: Sequence[StepPoint]) -> list[Any]:
    line = extras.require("matplotlib.lines", extra="plots").Line2D
    handles = [
        line([], [], label=name, color=style.colour, marker=style.marker, fillstyle=style.fill, linestyle=style.line)
        for name, style in styles.items()
    ]
    if any(point.seconds is None for point in points):
        handles.append(line([], [], label="out of memory", color="#444444", marker="x", mew=1.8, linestyle="none"))
    return handles


def _gib(size: int | None) -> float | None:
    return None if size is None else size / _GIB
