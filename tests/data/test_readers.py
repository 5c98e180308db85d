"""Rows and texts read from files equal what was written; every damage has its message."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptembedder.data import SourceFile, TextRow, read_rows, read_texts, scan_rows
from promptembedder.errors import DataError

files_take_their_time = settings(deadline=None)  # of a busy disk, not of the code
VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ROWS = st.lists(st.fixed_dictionaries({"id": VALID_TEXT, "text": VALID_TEXT}), min_size=1, max_size=6)
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff")).filter(str.strip)


def as_json_lines(rows: list[dict[str, Any]], *, ascii_only: bool = False) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], *, dialect: str = "excel") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def write(path: Path, content: bytes | str) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "A.JSONL", "a.jsonl.gz"])
@files_take_their_time
@given(rows=ROWS, ascii_only=st.booleans())
def test_json_lines_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[dict[str, str]], ascii_only: bool
) -> None:
    path = write(tmp_path_factory.getbasetemp() / name, as_json_lines(rows, ascii_only=ascii_only))
    assert list(read_rows(path)) == rows


@pytest.mark.parametrize(("name", "dialect"), [("a.csv", "excel"), ("a.tsv", "excel-tab"), ("a.csv.gz", "unix")])
@files_take_their_time
@given(rows=ROWS)
def test_csv_and_tsv_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, dialect: str, rows: list[dict[str, str]]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / name, as_csv(rows, dialect=dialect))
    assert list(read_rows(path)) == rows


@files_take_their_time
@given(rows=ROWS)
def test_parquet_comes_back_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert list(read_rows(path)) == rows


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@files_take_their_time
@given(lines=st.lists(LINE, min_size=1, max_size=6))
def test_plain_lines_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, end: str, lines: list[str]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / name, end.join(lines) + end)
    assert [row["text"] for row in read_rows(path)] == lines


def test_all_parquet_batches_come_back_in_order(tmp_path: Path) -> None:
    rows = [{"number": number} for number in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    assert list(read_rows(tmp_path / "a.parquet")) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path, name: str) -> None:
    line = '{"text": "one"}' if name == "a.jsonl" else "one"
    path = write(tmp_path / name, "\ufeff" + ("text\r\n" if name == "a.csv" else "") + f"\r\n{line}\r\n\r\n{line}\r\n")
    assert list(read_rows(path)) == [{"text": "one"}] * 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_delimiter_is_that_of_the_header_row(tmp_path: Path, name: str, delimiter: str) -> None:
    """Semicolons, which spreadsheets write in half of Europe, ended in an error about columns."""
    rows = [["question", "the answer"], ["one, two; or three?", "a|b\tc"], ["x", ""]]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    path = write(tmp_path / name, out.getvalue())
    assert list(read_rows(path)) == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    source = SourceFile(str(path))
    second = list(scan_rows(source))[1]
    assert [row.content for row in scan_rows(source, second.start)] == [second.content]


def test_delimiter_and_encoding_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b~c\nGrüße~2\n".encode("cp1252"))
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_rows(path))
    assert list(read_rows(path, delimiter="~", encoding="cp1252")) == [{"a,b": "Grüße", "c": "2"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "the delimiter '' is not a single character"),
        ({"delimiter": "::"}, "the delimiter '::' is not a single character"),
        ({"encoding": "latin-99"}, "the encoding 'latin-99' cannot be read. Use utf-8, cp1252"),
        ({"encoding": "utf-16"}, "the encoding 'utf-16' cannot be read"),
    ],
)
def test_unusable_delimiter_or_encoding_is_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=message):
        read_rows(path, **options)


def test_a_csv_value_may_have_a_million_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "x" * 1_000_000 + "\n")
    assert [len(row["text"]) for row in read_rows(path)] == [1_000_000]


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", '{"text": "one"}\nbroken\n'))
    assert next(rows) == {"text": "one"}
    with pytest.raises(DataError, match="line 2"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', r"a\.jsonl, line 3: broken JSON .*'\{\"a\":'.*one JSON object per line"),
        ("a.jsonl", "[" * 100_000, "line 1: broken JSON"),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "line 1: broken JSON"),
        ("a.json", '[{"a": 1}]', "line 1: a row must be a JSON object, got list"),
        ("a.jsonl", '{"a": 1}\nnull', "line 2: a row must be a JSON object, got NoneType"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"line 2: not UTF-8 at bytes b'\\xe9.*Convert the file"),
        ("a.txt", b"fine\n\xff\xfe\n", "line 2: not UTF-8"),
        ("a.csv", b"text\nfine\n\xff\n", "line 3: not UTF-8"),
        ("a.csv", "a,b\n1,2\n3\n", r"line 3: 1 values for the 2 columns a, b"),
        ("a.csv", 'a,b\n"x\ny",2\n1,2,3\n', r"line 4: 3 values for the 2 columns"),
        ("a.tsv", 'a\n"unclosed\n', "line 2: broken CSV .*Close each quote"),
        ("a.csv", "a,b,a\n1,2,3\n", "line 1: the header names 'a' twice"),
        ("a.csv", "a,b\n", "it holds no rows"),
        ("a.jsonl", "\n \n", "it holds no rows"),
        ("a.jsonl.gz", "", "it holds no rows"),
        ("a.txt", "", r"is empty \(0 bytes\)"),
        ("a.parquet", "", r"is empty \(0 bytes\)"),
        ("a.parquet", "PAR1 and no more", r"a\.parquet: unreadable Parquet"),
        ("a.xml", "<a/>", r"ending that no reader knows.*\.jsonl, .*\.csv, .*\.gz\) or \.parquet"),
        ("a.parquet.gz", "x", "ending that no reader knows"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path))


def cut_short(raw: bytes) -> bytes:
    return raw[:-20]


def overwritten(raw: bytes) -> bytes:
    return raw[:20] + bytes(20) + raw[40:]


def not_compressed(raw: bytes) -> bytes:
    return b"plain text"


@pytest.mark.parametrize("damage", [cut_short, overwritten, not_compressed])
def test_a_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(as_json_lines([{"n": n, "text": str(n) * 9} for n in range(2000)]))))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz, line \d+: (cannot be read|broken JSON|not UTF-8)"):
        list(read_rows(path))


def test_a_parquet_file_cut_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n} words" for n in range(5000)]}), path)
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + bytes(200) + raw[300:])
    with pytest.raises(DataError, match="unreadable Parquet"):
        list(read_rows(path))


def test_a_parquet_file_without_rows_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="it holds no rows"):
        list(read_rows(tmp_path / "a.parquet"))


def test_a_missing_file_and_a_folder_are_refused_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_texts(tmp_path / "folder.csv")


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path: Path) -> None:
    limit = 64 << 20
    path = write(tmp_path / "a.txt.gz", "short\n" + "x" * (limit + 1))
    with pytest.raises(DataError, match=f"line 2: longer than {limit} bytes"):
        list(read_rows(path))


def texts_of(path: Path, rows: list[dict[str, Any]], **columns: str) -> list[TextRow]:
    return list(read_texts(write(path, as_json_lines(rows)), **columns))


@files_take_their_time
@given(rows=ROWS)
def test_texts_and_ids_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    assert texts_of(path, rows) == [TextRow(id=row["id"], text=row["text"]) for row in rows]


@pytest.mark.parametrize("column", ["document", "passage", "content", "body", "sentence", "positive", "anchor"])
def test_the_text_column_is_found_by_its_usual_names(tmp_path: Path, column: str) -> None:
    assert texts_of(tmp_path / "a.jsonl", [{"kind": "x", column: "one"}]) == [TextRow(id="0", text="one")]


def test_the_first_usual_name_wins_over_the_order_of_columns(tmp_path: Path) -> None:
    assert texts_of(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "p"}]) == [TextRow(id="0", text="p")]


def test_chosen_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"id": "i", "title": "T", "text": "t", "key": 7}]
    assert texts_of(tmp_path / "a.jsonl", rows, text_column="text", id_column="key") == [TextRow(id="7", text="t")]


@pytest.mark.parametrize(
    ("title", "text", "joined"), [("T", "t", "T t"), ("", "t", "t"), (None, "t", "t"), ("T", "", "T")]
)
def test_a_title_goes_before_the_text_of_a_corpus(tmp_path: Path, title: str | None, text: str, joined: str) -> None:
    rows = [{"_id": "d1", "title": title, "text": text}]
    assert texts_of(tmp_path / "a.jsonl", rows) == [TextRow(id="d1", text=joined)]


def test_a_title_beside_another_column_than_text_is_left_alone(tmp_path: Path) -> None:
    assert texts_of(tmp_path / "a.jsonl", [{"title": "T", "body": "b"}]) == [TextRow(id="0", text="b")]


def test_lone_surrogates_of_a_file_are_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "\\ud800", "text": "half \\ud83d whole \\ud83d\\ude00"}')
    assert list(read_texts(path)) == [TextRow(id="\ufffd", text="half \ufffd whole \U0001f600")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": "x", "b": "y"}], r"row 1 has no text column: found 'a', 'b'\. Name one with --text-column"),
        ([{}], "row 1 has no text column: found no columns"),
        ([{"text": "x"}, {"txt": "y"}], r"a\.jsonl, row 2 has no column 'text': found 'txt'"),
        ([{"text": "x"}, {"text": None}], r"row 2: column 'text' holds None \(NoneType\), .*found: 'text'"),
        ([{"text": 3}], r"row 1: column 'text' holds 3 \(int\), not a string"),
        ([{"id": "1", "text": "x"}, {"text": "y"}], "row 2 has no column 'id'"),
        ([{"id": 1.5, "text": "x"}], r"row 1: id column 'id' holds 1\.5 \(float\).*--id-column"),
        ([{"id": True, "text": "x"}], r"row 1: id column 'id' holds True \(bool\)"),
    ],
)
def test_a_row_without_a_usable_text_or_id_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path / "a.jsonl", rows)


def test_a_chosen_column_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 has no column 'abstract': found 'text'"):
        texts_of(tmp_path / "a.jsonl", [{"text": "x"}], text_column="abstract")
