"""Streaming readers for JSON lines, CSV, TSV, Parquet and plain text, which can start at any row."""

import csv
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptembedder.data.sources import SourceFile
from promptembedder.errors import DataError, first_line, printable, short_repr

__all__ = ["FoundRow", "Position", "read_json_list", "read_rows", "scan_rows"]

_MAX_LINE_BYTES = 1 << 26  # 64 MiB: what keeps a file without line ends, or an unclosed quote, out of memory
_PARQUET_BATCH_ROWS = 256
_DELIMITERS = (";", "\t", ",", "|")


@dataclass(frozen=True)
class Position:
    """Position between two rows of a file, at which reading can resume.

    Attributes:
        row: Number of rows before it, including invalid ones.
        line: Number of lines before it. 0 in a Parquet file.
        offset: Number of bytes of the decompressed file before it. 0 in a Parquet file.
    """

    row: int = 0
    line: int = 0
    offset: int = 0


@dataclass(frozen=True)
class FoundRow:
    """Row of a file, or the error of an invalid row.

    Attributes:
        start: Position before the row.
        content: Values by column, or the error that `read_rows` raises for the row.
    """

    start: Position
    content: dict[str, Any] | DataError


def read_rows(path: Path, *, delimiter: str | None = None, encoding: str = "utf-8") -> Iterator[dict[str, Any]]:
    """Yield the rows of a file. The file ending determines the format.

    JSON lines (.jsonl, .ndjson, .json), CSV and TSV (with a header row; all values are strings), plain text
    (.txt, one text per line, as `{"text": line}`), each also as .gz; and Parquet. UTF-8 may have a byte order mark.
    Empty lines are skipped. At most one row, or one batch of Parquet rows, is in memory.

    Args:
        delimiter: Character between the values of CSV. If None, the one that the header row contains: a comma (TSV: a
            tab), else a semicolon, tab, comma or vertical bar.
        encoding: Encoding of lines of text, one that encodes a line feed as one byte.

    Raises:
        DataError: If the file is missing or empty or its ending unknown (raised by the call), or a line is broken or
            there are no rows (raised by the iterator). The message counts lines from 1.
    """
    source = SourceFile(str(path), delimiter=delimiter, encoding=encoding)
    source.check()
    return _sound_rows(source)


def scan_rows(source: SourceFile, start: Position | None = None) -> Iterator[FoundRow]:
    """Yield the rows of a file from `start` on, including invalid rows.

    Raises:
        DataError: If reading cannot continue: damaged file, unclosed quote, or a line without end.
    """
    read = _READERS[str(source.ending)]
    begin = start or Position()
    for number, (line, offset, content) in zip(count(begin.row), read(source, begin), strict=False):
        yield FoundRow(Position(number, line, offset), content)


_Content = dict[str, Any] | DataError
_Placed = tuple[int, int, _Content]  # lines and bytes before the row; the row


def _sound_rows(source: SourceFile) -> Iterator[dict[str, Any]]:
    empty = True
    for found in scan_rows(source):
        empty = False
        if isinstance(found.content, DataError):
            raise found.content
        yield found.content
    if empty:
        raise DataError(f"{source} is empty: it holds no rows. Write it again, or leave it out.")


def _json_rows(source: SourceFile, start: Position) -> Iterator[_Placed]:
    for line in _lines(source, start):
        if isinstance(line.text, DataError):
            yield line.before, line.offset, line.text
        elif line.text.strip():
            yield line.before, line.offset, _json_row(line.text, f"{source}, line {line.before + 1}")


def _json_row(line: str, place: str) -> _Content:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a whole number of too many digits
        return DataError(
            f"{place}: broken JSON ({error}), found {line.strip()[:60]!r}. Write one JSON object per line."
        )
    if not isinstance(row, dict):
        return DataError(
            f"{place}: a row must be a JSON object, got {type(row).__name__} {line.strip()[:60]!r}. "
            "Write one object per line, not a list of them."
        )
    return row


def _plain_rows(source: SourceFile, start: Position) -> Iterator[_Placed]:
    for line in _lines(source, start):
        if isinstance(line.text, DataError):
            yield line.before, line.offset, line.text
        elif line.text.strip():
            yield line.before, line.offset, {"text": line.text.removesuffix("\n").removesuffix("\r")}


def _csv_rows(source: SourceFile, start: Position, *, usual_delimiter: str) -> Iterator[_Placed]:
    if csv.field_size_limit() < _MAX_LINE_BYTES:
        csv.field_size_limit(_MAX_LINE_BYTES)  # a limit of the process, not of a reader: so only ever raised
    delimiter = source.delimiter or _detect_delimiter(source, usual_delimiter)
    if start.offset:
        header = next((cells for _, _, cells in _cells(source, Position(), delimiter) if cells), [])
    else:
        header = []
    for line, offset, cells in _cells(source, start, delimiter):
        if not cells:
            continue
        if not header:
            header = _checked_header(cells, f"{source}, line {line + 1}")
        elif len(cells) == len(header):
            yield line, offset, dict(zip(header, cells, strict=True))
        else:
            yield (
                line,
                offset,
                DataError(
                    f"{source}, line {line + 1}: {len(cells)} values for the {len(header)} columns "
                    f"{printable(', '.join(header))}. Quote values that hold the separator."
                ),
            )


def _detect_delimiter(source: SourceFile, usual: str) -> str:
    """Return the first delimiter that splits the header row, or `usual` if it is a single column.

    csv.Sniffer counts characters of all rows, and is wrong where texts contain more commas than columns.
    """
    texts = (line.text for line in _lines(source, Position()))
    header = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    return next((one for one in dict.fromkeys((usual, *_DELIMITERS)) if _splits(header, one)), usual)


def _splits(header: str, delimiter: str) -> bool:
    try:
        return len(next(csv.reader([header], delimiter=delimiter), [])) > 1
    except csv.Error:  # reading the rows reports it with its line
        return False


def _cells(source: SourceFile, start: Position, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the values of each row with the number of lines and bytes before it."""
    before, offset = start.line, start.offset

    def texts() -> Iterator[str]:
        nonlocal before, offset
        for line in _lines(source, start):
            if isinstance(line.text, DataError):
                raise line.text  # it may hold the end of a quoted value: what follows means nothing
            before, offset = line.before + 1, line.end
            yield line.text

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        row_line, row_offset = before, offset
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{source}, line {row_line + 1}: broken CSV ({error}). Close each quote and double those inside a "
                "value."
            ) from error
        if cells is None:
            return
        yield row_line, row_offset, cells


def _checked_header(cells: list[str], place: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise DataError(f"{place}: the header names {short_repr(twice[0])} twice. Rename one of the columns.")
    return cells


def _parquet_rows(source: SourceFile, start: Position) -> Iterator[_Placed]:
    try:
        with source.open() as raw, pq.ParquetFile(raw) as file:
            groups, first = list(range(file.num_row_groups)), 0
            while groups and first + file.metadata.row_group(groups[0]).num_rows <= start.row:
                first += file.metadata.row_group(groups.pop(0)).num_rows
            skip = start.row - first
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, row_groups=groups):
                rest = batch.slice(min(skip, batch.num_rows))
                skip -= batch.num_rows - rest.num_rows
                yield from ((0, 0, row) for row in rest.to_pylist())
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        # ValueError: also a string that is not UTF-8; the last two: a date after the year 9999, an unknown time zone
        raise DataError(f"{source}: unreadable Parquet ({first_line(error)}). Write the file again.") from error


@dataclass(frozen=True)
class _Line:
    """Line with its line end and position, or the error of an invalid line."""

    before: int
    offset: int
    end: int
    text: str | DataError


def _lines(source: SourceFile, start: Position) -> Iterator[_Line]:
    """Lines with their ends, split at line feeds alone: a text may well hold U+2028 or a form feed."""
    before, offset = start.line, start.offset
    try:
        with source.open() as file:
            if offset:
                file.seek(offset)
            while line := file.readline(_MAX_LINE_BYTES + 1):
                if len(line) > _MAX_LINE_BYTES:
                    raise DataError(
                        f"{source}, line {before + 1}: longer than {_MAX_LINE_BYTES} bytes. Is it one row per line?"
                    )
                text = _decoded(line, source, before)
                yield _Line(before, offset, offset + len(line), text)
                before, offset = before + 1, offset + len(line)
    except (OSError, EOFError, zlib.error) as error:  # EOFError, zlib.error: a gzip cut short or damaged
        raise DataError(
            f"{source}, line {before + 1}: cannot be read ({error}). Copy or compress the file again."
        ) from error


def _decoded(line: bytes, source: SourceFile, before: int) -> str | DataError:
    is_utf8 = source.encoding.lower().replace("_", "-").removesuffix("-sig") in ("utf-8", "utf8")
    try:
        return line.decode("utf-8-sig" if is_utf8 and before == 0 else source.encoding)
    except UnicodeDecodeError as error:
        found = error.object[error.start : error.start + 4]
        name = "UTF-8" if is_utf8 else source.encoding
        return DataError(f"{source}, line {before + 1}: not {name} at bytes {found!r}. Convert the file to UTF-8.")


_READERS: dict[str, Callable[[SourceFile, Position], Iterator[_Placed]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": partial(_csv_rows, usual_delimiter=","),
    ".tsv": partial(_csv_rows, usual_delimiter="\t"),
    ".txt": _plain_rows,
    ".parquet": _parquet_rows,
}


def read_json_list(path: Path, *, kind: str, items: str) -> list[Any]:
    """Read a JSON file that contains a list with at least one item.

    Args:
        kind: Name of such a file in messages.
        items: Plural of what it lists.

    Raises:
        DataError: If the file cannot be read or contains anything else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{kind} {path} cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or not UTF-8
        raise DataError(f"{kind} {path} is not JSON ({error}). Correct the file.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{kind} {path} must be a list of {items}, got {short_repr(entries)}. Write [{{...}}, ...].")
    return entries
