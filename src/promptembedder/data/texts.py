"""Texts: cleaning, validation and reading from files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from promptembedder.data.readers import read_rows
from promptembedder.errors import DataError, short_repr

__all__ = [
    "COLUMN_KINDS",
    "TextColumns",
    "TextRow",
    "check_text_list",
    "clean_instruction",
    "clean_text",
    "convert_value",
    "read_texts",
]

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Return `text` itself if it is valid Unicode, otherwise a copy that can be encoded as UTF-8.

    Lone surrogates, which JSON escapes and truncated strings may contain, become U+FFFD. Surrogate pairs become the
    character that they encode.

    Raises:
        DataError: If `text` is not a string.
    """
    if not isinstance(text, str):
        raise DataError(f"a text must be a str, got {type(text).__name__}. Convert it, or drop the row.")
    if _SURROGATE.search(text) is None:
        return text
    # a round trip through UTF-16 joins surrogate pairs and detects lone surrogates
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_instruction(instruction: str | None) -> str:
    """Clean an instruction with `clean_text` and strip it. Return an empty string for None.

    Raises:
        DataError: If the instruction is neither a string nor None.
    """
    if instruction is None:
        return ""
    if not isinstance(instruction, str):
        raise DataError(
            f"an instruction must be a str, got {str(instruction)[:40]!r} ({type(instruction).__name__}). "
            "Say in words what the texts are embedded for; several instructions go to encode_instructions."
        )
    return clean_text(instruction).strip()


def check_text_list(values: Sequence[str], *, name: str) -> list[str]:
    """Return the values as a list. A single string is an error, because it would become a list of letters.

    Raises:
        DataError: If `values` is a string or not iterable.
    """
    if isinstance(values, str):
        raise DataError(f"{name} must be a list of str, got the str {values[:40]!r}. Put it into a list.")
    try:
        return list(values)
    except TypeError as error:
        raise DataError(f"{name} must be a list of str, got {type(values).__name__}. Give a list.") from error


COLUMN_KINDS: Mapping[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_INT64 = 1 << 63


def convert_value(value: Any, kind: str) -> str | int | float | bool | None:
    """Convert a value to its column's kind. Return None for None and, unless the kind is `str`, for an empty string.

    Numbers and booleans may be written as strings, as in CSV.

    Raises:
        ValueError, TypeError: If the value cannot be converted.
    """
    if value is None or (value == "" and kind != "str"):
        return None
    if kind == "str" and isinstance(value, str):
        return clean_text(value)
    if kind == "bool" and str(value).lower() in _TRUTH:
        return _TRUTH[str(value).lower()]
    if kind == "int" and not isinstance(value, bool | float) and -_INT64 <= int(value) < _INT64:
        return int(value)
    if kind == "float" and not isinstance(value, bool):
        return float(value)
    raise ValueError(kind)


_TEXT_COLUMNS = ("text", "document", "passage", "content", "body", "sentence", "positive", "anchor")
_ID_COLUMNS = ("id", "_id")
_MAX_COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class TextRow:
    """Text of a file with its id."""

    id: str
    text: str


@dataclass(frozen=True)
class TextColumns:
    """Names of the columns that contain texts and ids.

    Attributes:
        id: Id column. If None, the row number is the id.
        title: Column whose value is prepended to the text, where a row has one.
    """

    text: str
    id: str | None = None
    title: str | None = None

    @classmethod
    def chosen(
        cls, row: dict[str, Any], *, text_column: str | None, id_column: str | None, place: str
    ) -> "TextColumns":
        """Select the columns of a file from its first row, as `read_texts` documents.

        Raises:
            DataError: If there is no text column. The message begins with `place`.
        """
        text = text_column or _first_of(_TEXT_COLUMNS, row)
        if text is None:
            raise DataError(
                f"{place} has no text column: found {_columns(row)}. "
                f"Name one with --text-column (text_column in Python), or rename it to {', '.join(_TEXT_COLUMNS)}."
            )
        title = "title" if text_column is None and text == "text" else None
        return cls(text=text, id=id_column or _first_of(_ID_COLUMNS, row), title=title)

    def row(self, row: dict[str, Any], *, index: int, place: str) -> TextRow:
        """Extract text and id of a row.

        Args:
            index: Row number from 0. It is the id if there is no id column.

        Raises:
            DataError: If the row lacks a column, or its text is not a string.
        """
        text = _text_of(row, self.text, place)
        title = None if self.title is None else row.get(self.title)
        if isinstance(title, str) and title:
            text = f"{title} {text}".strip()
        row_id = str(index) if self.id is None else _id_of(row, self.id, place)
        return TextRow(id=clean_text(row_id), text=clean_text(text))


def read_texts(path: Path, *, text_column: str | None = None, id_column: str | None = None) -> Iterator[TextRow]:
    """Yield the texts of a file with their ids. Lone surrogates are replaced.

    Args:
        text_column: If None, the first of text, document, passage, content, body, sentence, positive and anchor that
            the first row has. Only then, and only for `text`, a `title` is prepended, as in corpora of the BEIR format.
        id_column: If None, `id` or `_id` if the first row has one, otherwise the row number from 0.

    Raises:
        DataError: As in `read_rows`, or if a row lacks a column or its text is not a string.
    """
    return _texts(read_rows(path), path, text_column=text_column, id_column=id_column)


def _texts(
    rows: Iterator[dict[str, Any]], path: Path, *, text_column: str | None, id_column: str | None
) -> Iterator[TextRow]:
    columns: TextColumns | None = None
    for index, row in enumerate(rows):
        place = f"{path}, row {index + 1}"
        columns = columns or TextColumns.chosen(row, text_column=text_column, id_column=id_column, place=place)
        yield columns.row(row, index=index, place=place)


def _text_of(row: dict[str, Any], column: str, place: str) -> str:
    value = _value_of(row, column, place)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: column {short_repr(column)} holds {_shown(value)}, not a string "
            f"(columns found: {_columns(row)}). Correct or drop the row, or name another column with --text-column."
        )
    return value


def _id_of(row: dict[str, Any], column: str, place: str) -> str:
    value = _value_of(row, column, place)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{place}: id column {short_repr(column)} holds {_shown(value)}, not a string or a whole number "
            f"(columns found: {_columns(row)}). Correct the row, or name another column with --id-column."
        )
    return str(value)


def _value_of(row: dict[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise DataError(
            f"{place} has no column {short_repr(column)}: found {_columns(row)}. Correct it or name another column."
        )
    return row[column]


def _first_of(columns: tuple[str, ...], row: dict[str, Any]) -> str | None:
    return next((column for column in columns if column in row), None)


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(short_repr(column) for column in [*row][:_MAX_COLUMNS_SHOWN]) or "no columns"


def _shown(value: Any) -> str:
    return f"{short_repr(value)} ({type(value).__name__})"
