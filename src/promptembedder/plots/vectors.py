"""Embeddings of the same texts under several instructions: similarity heat map and 2-D projection."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from promptembedder.plots.style import legend_below, method_styles, new_figure, pictures, write_pictures
from promptembedder.types import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PlaneView", "align_view", "plane_view", "plot_map", "plot_similarity"]

_LETTERS = 34  # characters of a text label
_TITLE_LETTERS = 40
_MOST_NUMBERS = 14  # texts; larger heat maps have no numbers in their cells


@dataclass(frozen=True)
class PlaneView:
    """Projection of vectors on their first two principal components.

    Attributes:
        shares: Fraction of the variance along each component.
    """

    points: Float[np.ndarray, "texts 2"]
    shares: tuple[float, float]


def plane_view(vectors: Float[np.ndarray, "texts dim"]) -> PlaneView:
    """Project on the first two principal components. The largest entry of each is positive, so figures do not flip."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    first = directions[:2]
    signs = np.sign(first[np.arange(len(first)), np.abs(first).argmax(axis=1)])
    points = np.zeros((len(vectors), 2))
    points[:, : len(first)] = left[:, :2] * lengths[:2] * signs
    shares = np.zeros(2)
    shares[: len(first)] = lengths[:2] ** 2 / max(float((lengths**2).sum()), 1e-30)
    return PlaneView(points.astype(np.float32), (float(shares[0]), float(shares[1])))


def align_view(view: PlaneView, reference: PlaneView) -> PlaneView:
    """Rotate and mirror a projection onto another one of the same texts (orthogonal Procrustes problem).

    The directions of principal components are arbitrary, so that panels side by side would look different where the
    vectors are the same.
    """
    left, _, right = np.linalg.svd(view.points.T.astype(np.float64) @ reference.points)
    points = view.points @ (left @ right)
    total = float((view.points**2).sum()) / max(sum(view.shares), 1e-30)
    first, second = (points**2).sum(axis=0) / max(total, 1e-30)
    return PlaneView(points.astype(np.float32), (float(first), float(second)))


def plot_similarity(
    vectors: Float[np.ndarray, "instructions texts dim"],
    texts: Sequence[str],
    instructions: Sequence[str],
    path_stem: Path,
) -> list[Path]:
    """Plot cosines between all texts, one heat map per instruction. Return the paths of PNG, SVG and CSV.

    Args:
        vectors: Unit vectors.
        path_stem: Path of the files without extension.
    """
    cosines = np.einsum("itd,iud->itu", vectors, vectors)
    count = len(texts)
    names = [f"{row + 1}  {textwrap.shorten(text, _LETTERS, placeholder=' …')}" for row, text in enumerate(texts)]
    apart = cosines[:, ~np.eye(count, dtype=bool)]
    low, high = (float(apart.min()), float(apart.max())) if apart.size else (0.0, 1.0)
    side = max(0.36 * count, 2.2)
    with pictures():
        figure = new_figure(2.9 + (side + 0.3) * len(instructions), 1.3 + side)
        grid = figure.subplots(1, len(instructions), sharey=True, squeeze=False)[0]
        for axes, own, instruction in zip(grid, cosines, instructions, strict=True):
            # perceptually uniform: readable in grey
            image = axes.imshow(own, cmap="Greys", vmin=low, vmax=max(high, low + 1e-6))
            axes.grid(False)
            axes.set_title("\n".join(textwrap.wrap(instruction, max(int(side * 9), 16))), fontsize=10)
            axes.set_xticks(range(count), [str(row + 1) for row in range(count)])
            axes.set_yticks(range(count), names)
            axes.tick_params(length=0, labelsize=9)
            if count <= _MOST_NUMBERS:
                _write_numbers(axes, own, low, high)
        figure.colorbar(image, ax=list(grid), label="cosine", shrink=0.8, extend="max")
        rows = [
            {"instruction": instruction, "text": row + 1, "other": other + 1, "cosine": f"{cosine:.6f}"}
            for instruction, own in zip(instructions, cosines, strict=True)
            for (row, other), cosine in np.ndenumerate(own)
        ]
        return write_pictures(figure, path_stem, rows, ["instruction", "text", "other", "cosine"])


def plot_map(
    vectors: Float[np.ndarray, "instructions texts dim"],
    labels: Sequence[str],
    instructions: Sequence[str],
    path_stem: Path,
    *,
    title: str = "",
) -> list[Path]:
    """Plot the 2-D projection of the texts under each instruction, marked by label. Return paths of PNG, SVG and CSV.

    Args:
        path_stem: Path of the files without extension.
    """
    kinds = sorted(set(labels))
    styles = method_styles(kinds)
    of_label = np.array(labels)
    first, *others = (plane_view(own) for own in vectors)
    views = [first, *(align_view(view, first) for view in others)]
    with pictures():
        figure = new_figure(5.0 * len(instructions), 5.4)
        grid = figure.subplots(1, len(instructions), squeeze=False)[0]
        for axes, view, instruction in zip(grid, views, instructions, strict=True):
            for kind in kinds:
                own = view.points[of_label == kind]
                axes.plot(own[:, 0], own[:, 1], markersize=5.5, alpha=0.85, **styles[kind].look(line=False))
            axes.set_title("\n".join(textwrap.wrap(instruction, _TITLE_LETTERS)), fontsize=10)
            axes.set(
                xlabel=f"first direction ({100 * view.shares[0]:.0f} % of the variance)",
                ylabel=f"second direction ({100 * view.shares[1]:.0f} %)",
            )
        if title:
            figure.suptitle(title)
        legend_below(figure, styles, columns=min(len(kinds), 2 * len(instructions)), line=False)
        rows = [
            {"instruction": instruction, "row": row + 1, "label": label, "x": f"{x:.6f}", "y": f"{y:.6f}"}
            for instruction, view in zip(instructions, views, strict=True)
            for row, (label, (x, y)) in enumerate(zip(labels, view.points, strict=True))
        ]
        return write_pictures(figure, path_stem, rows, ["instruction", "row", "label", "x", "y"])


def _write_numbers(axes: "Axes", cosines: Float[np.ndarray, "texts texts"], low: float, high: float) -> None:
    for (row, other), cosine in np.ndenumerate(cosines):
        dark = cosine > low + 0.55 * (high - low)
        words = f"{cosine:.2f}".replace("0.", ".", 1)
        axes.text(other, row, words, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
