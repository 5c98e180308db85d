"""A method looks the same everywhere, and pictures leave no trace but their files."""

from pathlib import Path

import matplotlib
import pytest

from promptembedder.plots.style import method_styles, new_figure, pictures, write_pictures


def test_a_known_method_looks_the_same_whatever_stands_beside_it() -> None:
    one = method_styles(["lora", "static", "something new"])
    other = method_styles(["promptembedder", "another", "lora"])
    assert one["lora"] == other["lora"]
    assert list(one) == ["lora", "static", "something new"]


def test_methods_differ_in_colour_marker_and_line() -> None:
    names = ["promptembedder", "promptembedder-input", "static", "lora", "lora-checkpointing", "full", "frozen", "new"]
    styles = list(method_styles(names).values())
    for part in ("colour", "marker", "line"):
        assert len({str(getattr(style, part)) for style in styles}) == len(names)


def test_24_methods_can_be_told_apart_and_more_are_drawn_all_the_same() -> None:
    styles = method_styles(["lora", "frozen", *(f"method {place}" for place in range(22))])
    assert len({(style.colour, style.fill) for style in styles.values()}) == len(styles) == 24
    assert len(method_styles([f"method {place}" for place in range(30)])) == 30


def test_the_callers_own_settings_come_back() -> None:
    before = dict(matplotlib.rcParams)
    with pictures():
        assert matplotlib.rcParams["svg.hashsalt"] == "promptembedder"
    assert dict(matplotlib.rcParams) == before


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        with pictures():
            figure = new_figure(2, 2)
            figure.subplots().plot([1, 2], [1, 3])
            written.append(write_pictures(figure, tmp_path / name / "picture"))
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"old")
    with pictures():
        figure = new_figure(2, 2)
        figure.subplots().set_title("$\\nonsense$")
        with pytest.raises(ValueError, match="nonsense"):
            write_pictures(figure, tmp_path / "picture")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes() == b"old"
