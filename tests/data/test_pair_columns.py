"""Which columns of a table hold queries and the texts that answer them."""

from pathlib import Path

import pytest

from promptembedder.data import detect_pair_columns, read_pairs
from promptembedder.errors import ConfigError, DataError
from promptembedder.training import DataConfig


def written(folder: Path, header: str, *rows: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "anchor", "positive"),
    [
        ("anchor,positive", "anchor", "positive"),
        ("positive,anchor", "anchor", "positive"),
        ("id,Question,Answer", "Question", "Answer"),
        ("sentence1,sentence2,score", "sentence1", "sentence2"),
        ("Question,Answer,negative", "Question", "Answer"),
    ],
)
def test_columns_are_found_by_name(header: str, anchor: str, positive: str, tmp_path: Path) -> None:
    names = header.split(",")
    path = written(tmp_path, header, ",".join(f"of {name}" for name in names))
    found = detect_pair_columns(path)
    assert (found.anchor, found.positive) == (anchor, positive)
    pair = read_pairs(path).pairs[0]
    assert (pair.anchor, pair.positive) == (f"of {anchor}", f"of {positive}")
    assert pair.negative == ("of negative" if "negative" in names else None)


def test_the_only_two_columns_of_json_rows_are_the_pair(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"Frage": "a", "Antwort": "b", "negative": "c"}\n', encoding="utf-8")
    found = detect_pair_columns(path)
    assert (found.anchor, found.positive) == ("Frage", "Antwort")
    assert read_pairs(path).pairs[0].negative == "c"


@pytest.mark.parametrize("header", ["a,b,c", "text,label", "anchor,other", "text"])
def test_columns_that_could_be_anything_are_asked_for(header: str, tmp_path: Path) -> None:
    path = written(tmp_path, header, ",".join(header.split(",")))
    with pytest.raises(DataError, match=r"row 1 has no '(anchor|positive)': found .*columns=\[QUERY, TEXT\]"):
        detect_pair_columns(path)


@pytest.mark.parametrize("header", ["a,b," + "x" * 5000, ",".join(f"c{n}" for n in range(9000))], ids=["long", "many"])
def test_error_lists_a_limited_number_of_printable_columns(header: str, tmp_path: Path) -> None:
    """A name of five thousand letters was repeated whole."""
    path = written(tmp_path, header, header)
    with pytest.raises(DataError) as refused:
        detect_pair_columns(path)
    assert len(str(refused.value)) < 2500


def test_named_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,c", "1,2,3")
    found = detect_pair_columns(path, ["c", "a", "b"])
    assert (found.anchor, found.positive, found.negative) == ("c", "a", "b")
    with pytest.raises(
        ConfigError, match="must name anchor, positive and maybe negative, each another column, got \\['a'\\]"
    ):
        detect_pair_columns(path, ["a"])


@pytest.mark.parametrize(
    "rows",
    [
        ["how do I reset my password,Open the settings", "where are my invoices,Under Billing"],
        ["reset?,Open the settings", "invoices?,Under Billing"],
        ["1,2", "3,4"],
        ["card lost,card", "bill wrong,billing", "card stolen,card"],
        ["reset password,settings page", "find invoices,billing page"],
    ],
    ids=["sentence", "question", "numbers", "label", "short"],
)
def test_file_without_a_header_row_is_refused(rows: list[str], tmp_path: Path) -> None:
    """Its first pair was taken for the names of the columns and lost, unless it looked like a sentence."""
    path = written(tmp_path, *rows)
    with pytest.raises(
        DataError, match="row 1 was taken as header.*Begin the file with a row of names, such as anchor and positive"
    ) as refused:
        read_pairs(path)
    assert f"--columns '{rows[0]}'" in str(refused.value)
    anchor, positive = rows[0].split(",")
    assert read_pairs(path, columns=[anchor, positive]).pairs[0].anchor == rows[1].split(",")[0]


def test_column_is_named_once(tmp_path: Path) -> None:
    """`--columns a,a` trained on pairs of a text with itself."""
    path = written(tmp_path, "a,b", "1,2")
    for names in (["a", "a"], ["a", "b", "b"]):
        with pytest.raises(ConfigError, match="each another column"):
            read_pairs(path, columns=names)
        with pytest.raises(ConfigError, match="each another column"):
            DataConfig(pairs="x", columns=tuple(names))
