"""Texts and their ids from the rows of files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.data.readers import read_rows
from promptembedder.data.text import clean_text
from promptembedder.errors import DataError, shown

__all__ = ["TextColumns", "TextRow", "read_texts"]

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
