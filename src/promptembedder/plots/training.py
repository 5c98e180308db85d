"""Training curves over steps; time and memory of a training step by length and batch size."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptembedder import extras
from promptembedder.errors import DataError
from promptembedder.plots.style import MethodStyle, legend_below, method_styles, new_figure, pictures, write_pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RunLog", "StepPoint", "plot_memory", "plot_step_time", "plot_training", "read_run_log"]

LOG_NAME = "metrics.jsonl"
_PANELS = {
    "loss": "loss",
    "soft_token_entropy": "entropy of the\nsoft tokens [nats]",
    "soft_token_cosine": "cosine between\nsoft tokens",
    "soft_token_norm_ratio": "length of soft tokens\n[of the table's mean]",
    "grad_norm": "length of the gradient",
    "learning_rate": "learning rate",
}
_COLUMNS = 2
_GIB = 1 << 30
_CROSS_HEIGHT = 0.055  # fraction of the panel height
_CROSS: dict[str, Any] = {"marker": "x", "mew": 1.8, "linestyle": "none"}

Value = Callable[["StepPoint"], float | None]


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """Log of a training run: one mapping with `step`, `seconds` and named numbers per logged step."""

    name: str
    rows: Sequence[Mapping[str, float]]


def read_run_log(folder: Path) -> RunLog:
    """Read the log in the folder of a run. An incomplete last line is ignored.

    Raises:
        DataError: If the log is missing or contains nothing to plot.
    """
    path = folder / LOG_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{folder} contains no readable {LOG_NAME}. Give the output folder of promptembedder train or quickstart."
        ) from error
    rows = [row for line in lines if (row := _numbers(line)) is not None]
    if not any(set(row) & set(_PANELS) for row in rows):
        raise DataError(f"{path} holds no step with {', '.join(_PANELS)}. Train for at least one logged step.")
    return RunLog(name=folder.name or str(folder), rows=rows)


def plot_training(logs: Sequence[RunLog], path_stem: Path, *, title: str = "") -> list[Path]:
    """Plot one panel per quantity over steps, one line per run. Return the paths of PNG, SVG and CSV.

    Args:
        path_stem: Path of the files without extension.
    """
    panels = _panels(logs)
    names = _distinct([log.name for log in logs])
    styles = method_styles(names)
    rows = -(-len(panels) // _COLUMNS)
    with pictures():
        figure = new_figure(9.0, 0.8 + 2.4 * rows)
        grid = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False).flatten()
        for axes, (key, label) in zip(grid, panels.items(), strict=False):
            for name, log in zip(names, logs, strict=True):
                _draw_run(axes, log, key, styles[name])
            axes.set_ylabel(label, fontsize=10)
            if key == "learning_rate":
                axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[max(len(panels) - _COLUMNS, 0) : len(panels)]:
            axes.set_xlabel("training steps")
            axes.tick_params(labelbottom=True)
        if title:
            figure.suptitle(title)
        if len(logs) > 1:
            legend_below(figure, styles, columns=3)
        flat = [{"run": name, **row} for name, log in zip(names, logs, strict=True) for row in log.rows]
        return write_pictures(figure, path_stem, flat, ["run", "step", "seconds", *panels])


def _panels(logs: Sequence[RunLog]) -> dict[str, str]:
    """Return the label of each logged quantity by its name in the log: known ones, then evaluations."""
    logged = list(dict.fromkeys(name for log in logs for row in log.rows for name in row))
    evaluations = [
        name
        for name in logged
        if name not in _PANELS and (name.endswith(("_spearman_cosine", "_loss")) and name != "train_loss")
    ]
    known = {name: label for name, label in _PANELS.items() if name in logged}
    return known | {name: name.removeprefix("eval_").replace("_", " ") for name in evaluations}


def _draw_run(axes: "Axes", log: RunLog, key: str, style: MethodStyle) -> None:
    points = [(row["step"], row[key]) for row in log.rows if key in row]
    axes.plot(
        [step for step, _ in points],
        [value for _, value in points],
        **style.look(),
        markevery=max(1, len(points) // 10),
        markersize=5,
    )


def _numbers(line: str) -> dict[str, float] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("step"), int):
        return None
    return {name: value for name, value in content.items() if isinstance(value, int | float)}


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names; repeated names get a number."""
    seen: dict[str, int] = {}
    given = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        given.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return given


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
    return _plot_steps(points, [("step time [s]", lambda point: point.seconds)], path_stem, title)


def plot_memory(points: Sequence[StepPoint], path_stem: Path, *, title: str = "") -> list[Path]:
    """Plot activation memory and peak memory against the batch size, one column per length.

    Args:
        path_stem: Path of the files without extension.
    """
    rows: list[tuple[str, Value]] = [
        ("activations [GiB]", lambda point: _gib(point.activation_bytes)),
        ("peak [GiB]", lambda point: _gib(point.peak_bytes)),
    ]
    return _plot_steps(points, rows, path_stem, title)


def _plot_steps(
    points: Sequence[StepPoint], rows: Sequence[tuple[str, Value]], path_stem: Path, title: str
) -> list[Path]:
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
                _draw_steps(axes, [point for point in points if point.length == length], value, styles)
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
        failed = any(point.seconds is None for point in points)
        others = {"out of memory": {"color": "#444444", **_CROSS}} if failed else {}
        legend_below(figure, styles, columns=legend_columns, others=others)
        return write_pictures(figure, path_stem)


def _draw_steps(axes: "Axes", points: Sequence[StepPoint], value: Value, styles: dict[str, MethodStyle]) -> int:
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
            **style.look(),
        )
        failed = [point.batch for point in own if point.seconds is None]
        if failed:  # stacked crosses above the first batch size that ran out of memory
            place = 1 - _CROSS_HEIGHT * (failures + 0.5)
            axes.plot(failed[0], place, color=style.colour, transform=axes.get_xaxis_transform(), **_CROSS)
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


def _gib(size: int | None) -> float | None:
    return None if size is None else size / _GIB
