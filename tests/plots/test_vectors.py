"""Laws of the pictures of vectors."""

import csv
from pathlib import Path

import numpy as np

from promptembedder.plots import align_view, plane_view, plot_map, plot_similarity


def unit_rows(*shape: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_the_plane_is_that_of_the_covariances_first_eigenvectors() -> None:
    vectors = unit_rows(30, 6)
    view = plane_view(vectors)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    for place in range(2):
        expected = centred @ directions[:, -1 - place]
        sign = np.sign(expected @ view.points[:, place])
        np.testing.assert_allclose(view.points[:, place], sign * expected, atol=1e-5)
        assert abs(view.shares[place] - variances[-1 - place] / variances.sum()) < 1e-6
    np.testing.assert_allclose(plane_view(vectors[::-1]).points[::-1], view.points, atol=1e-5)  # order turns nothing


def test_a_plane_of_one_dimension_or_of_equal_vectors_is_finite() -> None:
    assert np.isfinite(plane_view(np.ones((4, 3), dtype=np.float32)).points).all()
    assert plane_view(np.arange(4, dtype=np.float32).reshape(4, 1)).points.shape == (4, 2)


def test_the_table_of_the_heat_map_holds_the_cosines(tmp_path: Path) -> None:
    vectors = unit_rows(2, 3, 5)
    texts = ["a text", "one that is far too long for the side of a picture and is cut", "$x_1^2$ \n lines"]
    files = plot_similarity(vectors, texts, ["first", "second " * 20], tmp_path / "similarity")
    assert [path.suffix for path in files] == [".png", ".svg", ".csv"]
    with files[2].open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 3 * 3
    assert abs(float(table[1]["cosine"]) - float(vectors[0, 0] @ vectors[0, 1])) < 1e-5


def test_the_table_of_the_map_holds_the_places(tmp_path: Path) -> None:
    vectors = unit_rows(2, 12, 5)
    files = plot_map(vectors, ["a", "b", "c"] * 4, ["first", "second"], tmp_path / "map")
    with files[2].open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["label"] for row in table[:4]] == ["a", "b", "c", "a"]
    second = np.array([[float(row["x"]), float(row["y"])] for row in table[12:]])
    first, other = (plane_view(own) for own in vectors)
    np.testing.assert_allclose(second, align_view(other, first).points, atol=1e-5)
    assert [row["row"] for row in table[:2]] == ["1", "2"]


def test_panels_of_the_same_vectors_turned_or_mirrored_look_the_same(tmp_path: Path) -> None:
    """The axes of one panel were often those of the next one mirrored, as the signs of the components are arbitrary."""
    vectors = unit_rows(12, 2)
    turned = vectors @ np.array([[0.6, 0.8], [0.8, -0.6]], dtype=np.float32)  # a rotation with a mirror
    files = plot_map(np.stack([vectors, turned]), ["a", "b", "c"] * 4, ["first", "second"], tmp_path / "map")
    with files[2].open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    points = np.array([[float(row["x"]), float(row["y"])] for row in table])
    np.testing.assert_allclose(points[12:], points[:12], atol=1e-5)


def test_an_aligned_projection_keeps_distances_and_variance() -> None:
    first, other = (plane_view(own) for own in unit_rows(2, 12, 5))
    aligned = align_view(other, first)
    distances = [np.linalg.norm(view.points[:, None] - view.points, axis=-1) for view in (other, aligned)]
    np.testing.assert_allclose(distances[1], distances[0], atol=1e-5)
    assert abs(sum(aligned.shares) - sum(other.shares)) < 1e-6
