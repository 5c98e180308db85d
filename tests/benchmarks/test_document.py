"""Tables of a document come from the results' JSON, and nothing else in it changes."""

import json
from pathlib import Path

import pytest

from benchmarks.document import markdown_table, regenerate
from promptembedder.errors import DataError

TEXT = "before\n\n<!-- quality -->\nold 41.0\n<!-- end quality -->\n\nafter\n"
PAGES = {"quality": lambda content: f"score {content['score']}", "efficiency": lambda content: "unused"}


def test_what_stands_between_the_markers_is_replaced_however_often(tmp_path: Path) -> None:
    (tmp_path / "quality.json").write_text(json.dumps({"score": 42}))
    document = tmp_path / "results.md"
    document.write_text(TEXT)
    assert regenerate(document, tmp_path, PAGES) == ["quality"]
    once = document.read_text()
    assert once == "before\n\n<!-- quality -->\n\nscore 42\n\n<!-- end quality -->\n\nafter\n"
    regenerate(document, tmp_path, PAGES)
    assert document.read_text() == once


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        ("no marker", '{"score": 1}', "has no marker that fits"),
        ("<!-- quality -->", '{"score": 1}', "no <!-- end quality -->"),
        (TEXT, "{cut off", "is no JSON"),
        (None, '{"score": 1}', "cannot read"),
    ],
)
def test_a_document_that_cannot_be_written_anew_is_left_alone(
    text: str | None, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "quality.json").write_text(content)
    document = tmp_path / "results.md"
    if text is not None:
        document.write_text(text)
    with pytest.raises(DataError, match=message):
        regenerate(document, tmp_path, PAGES)
    assert text is None or document.read_text() == text


def test_a_markdown_table_keeps_its_columns_whatever_the_cells_hold() -> None:
    table = markdown_table(["a", "b"], [["x|y", "1\n2"]])
    assert table == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |\n"
