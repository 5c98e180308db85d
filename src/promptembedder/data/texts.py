"""Texts: cleaning, validation and reading from files."""

import re
from collections.abc import Sequence
from promptembedder.errors import DataError
from collections.abc import Mapping
from typing import Any
import pyarrow as pa
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from promptembedder.data.readers import read_rows
from promptembedder.errors import DataError, shown

__all__ = ['COLUMN_KINDS', 'TextColumns', 'TextRow', 'clean_instruction', 'clean_text', 'column_value', 'read_texts', 'text_list']

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """`text` itself where it is valid Unicode; else a copy that can be encoded as UTF-8.

    Half an emoji, as JSON's backslash-u escapes and cut strings leave it, becomes U+FFFD; two halves that
    stand together become the one character they mean.

    Raises:
        DataError: `text` is no string.
    """
    if not isinstance(text, str):
        raise DataError(f"a text must be a str, got {type(text).__name__}. Convert it, or drop the row.")
    if _SURROGATE.search(text) is None:
        return text
    # UTF-16 knows surrogate pairs: a round trip through it joins whole ones and finds the lone ones
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_instruction(instruction: str | None) -> str:
    """The instruction as `clean_text` gives it, without blanks around it; empty for None.

    Raises:
        DataError: It is neither a string nor None.
    """
    if instruction is None:
        return ""
    if not isinstance(instruction, str):
        raise DataError(
            f"an instruction must be a str, got {str(instruction)[:40]!r} ({type(instruction).__name__}). "
            "Say in words what the texts are embedded for; several instructions go to encode_instructions."
        )
    return clean_text(instruction).strip()


def text_list(values: Sequence[str], *, name: str) -> list[str]:
    """The values as a list; a single string is refused, since it would be taken for its letters.

    Raises:
        DataError: It is one string, or nothing to go through.
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


def column_value(value: Any, kind: str) -> str | int | float | bool | None:
    """The value as one of its kind; None, and where no text is meant a blank string, for nothing.

    Numbers and truth may be written as strings, as in CSV.

    Raises:
        ValueError, TypeError: It cannot be one.
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
_MOST_COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class TextRow:
    """One text of a file, and the name it goes by."""

    id: str
    text: str


@dataclass(frozen=True)
class TextColumns:
    """Which columns of a file hold texts and ids.

    Attributes:
        id: None: the number of the row is its id.
        title: Goes before the text of a row that has it.
    """

    text: str
    id: str | None = None
    title: str | None = None

    @classmethod
    def chosen(
        cls, row: dict[str, Any], *, text_column: str | None, id_column: str | None, place: str
    ) -> "TextColumns":
        """The columns of a file by its first row; as `read_texts` says.

        Raises:
            DataError: There is no text column; the message begins with `place`.
        """
        text = text_column or _first_of(_TEXT_COLUMNS, row)
        if text is None:
            raise DataError(
                f"{place} has no text column: found {_columns(row)}. "
                f"Name one with text_column, or rename it to one of {', '.join(_TEXT_COLUMNS)}."
            )
        title = "title" if text_column is None and text == "text" else None
        return cls(text=text, id=id_column or _first_of(_ID_COLUMNS, row), title=title)

    def row(self, row: dict[str, Any], *, index: int, place: str) -> TextRow:
        """The text and id of a row.

        Args:
            index: The row's number, from 0; its id where no column holds one.

        Raises:
            DataError: It lacks a column, or its text is no string.
        """
        text = _text_of(row, self.text, place)
        title = None if self.title is None else row.get(self.title)
        if isinstance(title, str) and title:
            text = f"{title} {text}".strip()
        row_id = str(index) if self.id is None else _id_of(row, self.id, place)
        return TextRow(id=clean_text(row_id), text=clean_text(text))


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
            f"{place}: column {shown(column)} holds {_shown(value)}, not a string (columns found: {_columns(row)}). "
            "Mend or drop the row, or name another column with text_column."
        )
    return value


def _id_of(row: dict[str, Any], column: str, place: str) -> str:
    value = _value_of(row, column, place)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{place}: id column {shown(column)} holds {_shown(value)}, not a string or a whole number "
            f"(columns found: {_columns(row)}). Mend the row, or name another column with id_column."
        )
    return str(value)


def _value_of(row: dict[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise DataError(
            f"{place} has no column {shown(column)}: found {_columns(row)}. Mend the row or name another column."
        )
    return row[column]


def _first_of(columns: tuple[str, ...], row: dict[str, Any]) -> str | None:
    return next((column for column in columns if column in row), None)


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(shown(column) for column in [*row][:_MOST_COLUMNS_SHOWN]) or "no columns"


def _shown(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"
