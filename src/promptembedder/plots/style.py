"""Common style of all figures: fixed colour, marker and line per method, readable in black and white."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptembedder import extras
from promptembedder.errors import SaveError
from promptembedder.storage import write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MethodStyle", "legend_below", "method_styles", "new_figure", "pictures", "write_pictures"]

# ordered by how many figures contain the method, so that each method has one style everywhere
_KNOWN = ("promptembedder", "promptembedder-input", "static", "lora", "lora-checkpointing", "full", "frozen")

# palette of Okabe and Ito without yellow, which is invisible on paper
_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#D55E00", "#E69F00", "#000000", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "D", "v", "s", "^", "X", "P", "*")
_LINES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.5)),
    (0, (1, 1.5)),
    "--",
    "-.",
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2, 2, 2)),
    (0, (1, 3)),
)

_FILLS = ("full", "none", "left")

_LOOK: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib: equal figures on every machine
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "figure.titlesize": 12.0,
    "axes.labelsize": 11.0,
    "legend.fontsize": 10.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "svg.hashsalt": "promptembedder",  # equal data gives equal files
    "svg.fonttype": "path",
    "savefig.dpi": 200,
}


@dataclass(frozen=True, kw_only=True)
class MethodStyle:
    """Style of a method; `line` is a matplotlib line style, `fill` a matplotlib marker fill style."""

    colour: str
    marker: str
    line: Any
    fill: str = "full"

    def look(self, *, line: bool = True) -> dict[str, Any]:
        """Return the keyword arguments of `Axes.plot`, without a line for single points."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "fillstyle": self.fill,
            "linestyle": self.line if line else "none",
        }


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """Assign a style to each method in order of first mention: eight filled, then hollow, then half-filled ones."""
    unknown = [method for method in dict.fromkeys(methods) if method not in _KNOWN]
    taken = {place for place, name in enumerate(_KNOWN) if name in methods}
    looks = len(_COLOURS)
    free = [place for place in reversed(range(looks)) if place not in taken]
    free += range(looks, looks + len(unknown))
    places = {name: _KNOWN.index(name) for name in methods if name in _KNOWN}
    places |= dict(zip(unknown, free, strict=False))
    return {
        name: MethodStyle(
            colour=_COLOURS[places[name] % looks],
            marker=_MARKERS[places[name] % looks],
            line=_LINES[places[name] % looks],
            fill=_FILLS[min(places[name] // looks, len(_FILLS) - 1)],
        )
        for name in dict.fromkeys(methods)
    }


@contextmanager
def pictures() -> Iterator[None]:
    """Apply the common style to figures; the settings of the caller are restored on exit.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    matplotlib = extras.require("matplotlib", extra="plots")
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **_LOOK}):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Create an empty figure, size in inches, with constrained layout."""
    # not pyplot, which keeps figures alive and needs a display
    figure: Figure = extras.require("matplotlib.figure", extra="plots").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure


def legend_below(
    figure: "Figure",
    styles: Mapping[str, MethodStyle],
    *,
    columns: int,
    line: bool = True,
    others: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Add one legend for all panels below them.

    Args:
        line: Show the lines of the styles, not only their markers.
        others: Keyword arguments of matplotlib's `Line2D` for further entries, by label.
    """
    new_line = extras.require("matplotlib.lines", extra="plots").Line2D
    looks = {name: style.look(line=line) for name, style in styles.items()} | dict(others or {})
    figure.legend(
        handles=[new_line([], [], label=name, **look) for name, look in looks.items()],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=3.2 if line else 1.2,  # in font sizes
    )


def write_pictures(
    figure: "Figure", stem: Path, rows: Sequence[Mapping[str, Any]] | None = None, columns: Sequence[str] = ()
) -> list[Path]:
    """Write `stem`.png and `stem`.svg atomically and, with `rows`, their numbers in `columns` as `stem`.csv.

    Raises:
        SaveError: If a file cannot be written.
    """
    try:
        written = _write_pictures(figure, stem)
    except OSError as error:
        raise SaveError(
            f"cannot write {stem} ({error.strerror or error}). Free space on the disk, or choose another output."
        ) from error
    if rows is None:
        return written
    table = stem.with_name(f"{stem.name}.csv")
    write_csv(table, rows, columns)
    return [*written, table]


def _write_pictures(figure: "Figure", stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        path = stem.with_name(f"{stem.name}.{kind}")
        with tempfile.TemporaryDirectory(dir=stem.parent, prefix=f".{stem.name}-") as folder:
            scratch = Path(folder) / path.name
            figure.savefig(scratch, format=kind, metadata=metadata)
            scratch.replace(path)
        written.append(path)
    return written
