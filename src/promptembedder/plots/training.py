"""Training curves: loss, evaluation and soft-token diagnostics over steps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptembedder import extras
from promptembedder.errors import DataError
from promptembedder.plots.style import MethodStyle, legend_below, method_styles, new_figure, pictures, write_pictures
from promptembedder.storage import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RunLog", "plot_training", "read_run_log"]

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
            legend_below(figure, [_handle(name, style) for name, style in styles.items()], columns=3)
        files = write_pictures(figure, path_stem)
    table = path_stem.with_name(f"{path_stem.name}.csv")
    flat = [{"run": name, **row} for name, log in zip(names, logs, strict=True) for row in log.rows]
    write_csv(table, flat, ["run", "step", "seconds", *panels])
    return [*files, table]


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
        color=style.colour,
        marker=style.marker,
        fillstyle=style.fill,
        linestyle=style.line,
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


def _handle(name: str, style: MethodStyle) -> Any:
    line = extras.require("matplotlib.lines", extra="plots").Line2D
    look = {"color": style.colour, "marker": style.marker, "fillstyle": style.fill, "linestyle": style.line}
    return line([], [], label=name, **look)
