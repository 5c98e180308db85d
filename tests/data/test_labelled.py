"""Laws of labelled corpora: every text keeps its labels, and what cannot be trained on is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptembedder.data import read_labelled_corpora
from promptembedder.errors import DataError

ROWS = [
    {"text": "red house", "labels": {"colour": "red", "thing": "house"}},
    {"text": "red car", "labels": {"colour": "red", "thing": "car"}},
    {"text": "blue house", "labels": {"colour": "blue", "thing": "house"}},
    {"text": "blue car", "labels": {"colour": "blue"}},
    {"text": "nothing", "labels": {}},
]
ATTRIBUTES = {"colour": {"instructions": ["Which colour?"]}, "thing": {"instructions": ["Which thing?"]}}


def write_corpus(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {"name": "things", "file": "rows.jsonl", "attributes": ATTRIBUTES, **changes}
    path = folder / "corpora.json"
    path.write_text(json.dumps([entry]), encoding="utf-8")
    return path


def test_texts_have_their_labels_and_unlabelled_rows_are_left_out(tmp_path: Path) -> None:
    (corpus,) = read_labelled_corpora(write_corpus(tmp_path, ROWS))
    assert corpus.texts == ("red house", "red car", "blue house", "blue car")
    colour, thing = corpus.attributes
    assert [colour.values[code] for code in colour.codes] == ["red", "red", "blue", "blue"]
    assert [thing.values[code] if code >= 0 else None for code in thing.codes] == ["house", "car", "house", None]


def test_labels_in_columns_equal_labels_in_a_mapping(tmp_path: Path) -> None:
    (mapped,) = read_labelled_corpora(write_corpus(tmp_path, ROWS))
    (flat,) = read_labelled_corpora(write_corpus(tmp_path, [{"text": row["text"], **row["labels"]} for row in ROWS]))
    assert flat == mapped


def test_partners_share_a_label_and_are_other_texts(tmp_path: Path) -> None:
    (corpus,) = read_labelled_corpora(write_corpus(tmp_path, ROWS))
    labels = corpus.labels_by_text()
    pairs = corpus.draw_pairs(seed=0)
    assert {text for text, _ in pairs} == set(corpus.texts)
    for one, other in pairs:
        assert one != other
        assert any(a == b >= 0 for a, b in zip(labels[one], labels[other], strict=True))


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (ROWS, {"attributes": {"size": {"instructions": ["Which size?"]}}}, "no row has a label of size"),
        (ROWS[:2], {}, "'colour' has 1 labels"),
        (ROWS, {"attributes": {"colour": {"instructions": []}}}, "'colour' has no instructions"),
        ([{"labels": {"colour": "red"}}], {}, "row 1 has no text"),
        (ROWS, {"file": "nowhere.jsonl"}, "nowhere.jsonl"),
        (ROWS, {"attributes": {}}, "lacks 'attributes'"),
        (ROWS, {"attribute": {}}, "unknown key 'attribute'. Did you mean 'attributes'[?]"),
        (
            ROWS,
            {"attributes": {"colour": {"instruction": ["Which?"]}}},
            "attribute 'colour' has the unknown key 'instruction'. Did you mean 'instructions'[?]",
        ),
    ],
)
def test_unusable_corpus_is_refused_with_one_line(
    rows: list[dict[str, Any]], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_labelled_corpora(write_corpus(tmp_path, rows, **changes))
    assert "\n" not in str(caught.value)


def test_unknown_corpus_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus 'people'. It has: things"):
        read_labelled_corpora(write_corpus(tmp_path, ROWS), names=["people"])
