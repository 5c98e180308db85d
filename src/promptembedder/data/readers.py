"""_Rows and texts from files: JSON lines, CSV, TSV, Parquet and plain text, streamed."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.data.text import clean_text
from promptembedder.errors import DataError

__all__ = ["TextRow", "read_rows", "read_texts"]

_TEXT_COLUMNS = ("text", "document", "passage", "content", "body", "sentence", "positive", "anchor")
_ID_COLUMNS = ("id", "_id")
_MAX_LINE_BYTES = 1 << 26  # 64 MiB: what keeps a file without line ends, or an unclosed quote, out of memory
_PARQUET_BATCH_ROWS = 256

_Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class TextRow:
    """One text of a file, and the name it goes by."""

    id: str
    text: str


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, one by one; the ending of its name tells the format.

    JSON lines (.jsonl, .ndjson, .json), CSV and TSV (with a header row; all values are strings), plain text
    (.txt, one text per line, as `{"text": line}`), each also as .gz; and Parquet. Encoding is UTF-8, with or
    without byte order mark. Empty lines are skipped. No more than a row, or a batch of Parquet rows, is held.

    Raises:
        DataError: At once for a missing or empty file or an unknown ending; while reading for a broken line,
            which the message numbers from 1, or a file without rows.
    """
    reader = _reader_for(path)
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    if path.is_dir():
        raise DataError(f"{path} is a folder. Give one of the files in it.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Write it again, or leave it out.")
    return _at_least_one(reader(path), path)


def read_texts(path: Path, *, text_column: str | None = None, id_column: str | None = None) -> Iterator[TextRow]:
    """The texts of a file and their ids, one by one; surrogates that stand alone are replaced.

    Args:
        text_column: By default the first of text, document, passage, content, body, sentence, positive and
            anchor that the first row has. Only then, and only for `text`, a `title` goes before it, as in
            corpora of the BEIR shape.
        id_column: By default `id` or `_id` if the first row has one, else the number of the row from 0.

    Raises:
        DataError: As in `read_rows`; or a row lacks a column, or its text is no string.
    """
    return _texts(read_rows(path), path, text_column=text_column, id_column=id_column)


def _texts(rows: _Rows, path: Path, *, text_column: str | None, id_column: str | None) -> Iterator[TextRow]:
    text_from, id_from = text_column, id_column
    for index, row in enumerate(rows):
        place = f"{path}, row {index + 1}"
        if index == 0:
            text_from = text_column or _first_of(_TEXT_COLUMNS, row)
            id_from = id_column or _first_of(_ID_COLUMNS, row)
        if text_from is None:
            raise DataError(
                f"{place} has no text column: found {_columns(row)}. "
                f"Name one with text_column, or rename it to one of {', '.join(_TEXT_COLUMNS)}."
            )
        text = _text_of(row, text_from, place)
        title = row.get("title") if text_column is None and text_from == "text" else None
        if isinstance(title, str) and title:
            text = f"{title} {text}".strip()
        row_id = str(index) if id_from is None else _id_of(row, id_from, place)
        yield TextRow(id=clean_text(row_id), text=clean_text(text))


def _text_of(row: dict[str, Any], column: str, place: str) -> str:
    value = _value_of(row, column, place)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: column {column!r} holds {_shown(value)}, not a string (columns found: {_columns(row)}). "
            "Mend or drop the row, or name another column with text_column."
        )
    return value


def _id_of(row: dict[str, Any], column: str, place: str) -> str:
    value = _value_of(row, column, place)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{place}: id column {column!r} holds {_shown(value)}, not a string or a whole number "
            f"(columns found: {_columns(row)}). Mend the row, or name another column with id_column."
        )
    return str(value)


def _value_of(row: dict[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise DataError(
            f"{place} has no column {column!r}: found {_columns(row)}. Mend the row or name another column."
        )
    return row[column]


def _first_of(columns: tuple[str, ...], row: dict[str, Any]) -> str | None:
    return next((column for column in columns if column in row), None)


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(repr(column) for column in row) or "no columns"


def _shown(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"


def _reader_for(path: Path) -> Callable[[Path], _Rows]:
    name = path.name.lower()
    by_ending: dict[str, Callable[[Path], _Rows]] = {
        ".jsonl": _json_rows,
        ".ndjson": _json_rows,
        ".json": _json_rows,
        ".csv": partial(_csv_rows, delimiter=","),
        ".tsv": partial(_csv_rows, delimiter="\t"),
        ".txt": _plain_rows,
    }
    if name.endswith(".parquet"):
        return _parquet_rows
    for ending, reader in by_ending.items():
        if name.removesuffix(".gz").endswith(ending):
            return reader
    raise DataError(
        f"{path} has an ending that no reader knows. "
        f"Use one of {', '.join(by_ending)} (each also with .gz) or .parquet, and name the file for what it holds."
    )


def _at_least_one(rows: _Rows, path: Path) -> _Rows:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} is empty: it holds no rows. Write it again, or leave it out.")


def _json_rows(path: Path) -> _Rows:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a whole number of too many digits
            raise DataError(
                f"{path}, line {number}: broken JSON ({error}), found {line.strip()[:60]!r}. "
                "Write one JSON object per line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: a row must be a JSON object, got {type(row).__name__} {line.strip()[:60]!r}. "
                "Write one object per line, not a list of them."
            )
        yield row


def _plain_rows(path: Path) -> _Rows:
    for _, line in _lines(path):
        if line.strip():
            yield {"text": line.removesuffix("\n").removesuffix("\r")}


def _csv_rows(path: Path, *, delimiter: str) -> _Rows:
    if csv.field_size_limit() < _MAX_LINE_BYTES:
        csv.field_size_limit(_MAX_LINE_BYTES)  # a limit of the process, not of a reader: so only ever raised
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {number}: broken CSV ({error}). Close each quote and double those inside a value."
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _checked_header(cells, f"{path}, line {number}")
        elif len(cells) == len(header):
            yield dict(zip(header, cells, strict=True))
        else:
            raise DataError(
                f"{path}, line {number}: {len(cells)} values for the {len(header)} columns {', '.join(header)}. "
                "Quote values that hold the separator."
            )


def _checked_header(cells: list[str], place: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise DataError(f"{place}: the header names {twice[0]!r} twice. Rename one of the columns.")
    return cells


def _parquet_rows(path: Path) -> _Rows:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: also a string that is not UTF-8
        raise DataError(f"{path}: unreadable Parquet ({error}). Write the file again.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, split at line feeds alone: a text may well hold U+2028 or a form feed."""
    number = 0
    try:
        with _opened(path) as file:
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > _MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}, line {number}: longer than {_MAX_LINE_BYTES} bytes. Is it one row per line?"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        found = error.object[error.start : error.start + 4]
        raise DataError(f"{path}, line {number}: not UTF-8 at bytes {found!r}. Convert the file to UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:  # EOFError, zlib.error: a gzip cut short or damaged
        raise DataError(
            f"{path}, line {number + 1}: cannot be read ({error}). Copy or compress the file again."
        ) from error


def _opened(path: Path) -> io.BufferedReader:
    if path.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))  # GzipFile's own readline is slow
    return path.open("rb")
