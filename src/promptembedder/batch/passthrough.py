"""Columns of a corpus that are carried along beside its vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from promptembedder.data import COLUMN_KINDS, column_value
from promptembedder.errors import ConfigError, DataError

__all__ = ["KeptColumn", "kept_values"]


@dataclass(frozen=True)
class KeptColumn:
    """A column that is written beside the vectors; a row without it has null there.

    Attributes:
        type: One of str, int, float, bool.
    """

    name: str
    type: str = "str"

    @classmethod
    def parsed(cls, words: str) -> "KeptColumn":
        """The column that `NAME` or `NAME:TYPE` asks for.

        Raises:
            ConfigError: The type is unknown, or the name is blank or one that the output has anyway.
        """
        name, colon, kind = words.rpartition(":")
        name, kind = (name, kind) if colon else (kind, "str")
        if kind not in COLUMN_KINDS:
            raise ConfigError(f"the column {words!r} has the type {kind!r}. Use one of {', '.join(COLUMN_KINDS)}.")
        if not name.strip():
            raise ConfigError(f"the column {words!r} has no name. Write it as NAME or NAME:TYPE.")
        if name == "id" or name.startswith("embedding"):
            raise ConfigError(f"the column {name!r} is one that is written anyway. Leave it out.")
        return cls(name, kind)

    @property
    def field(self) -> pa.Field:
        """Of the output's schema."""
        return pa.field(self.name, COLUMN_KINDS[self.type])

    def value(self, row: dict[str, Any], place: str) -> str | int | float | bool | None:
        """What the row holds, as the column's type; numbers may be written as strings, as in CSV.

        Raises:
            DataError: It is of another type; the message begins with `place`.
        """
        found = row.get(self.name)
        try:
            return column_value(found, self.type)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{place}: column {self.name!r} holds {str(found)[:40]!r} ({type(found).__name__}), not {self.type}. "
                "Mend or drop the row, or keep the column as another type."
            ) from error


def kept_values(
    columns: Sequence[KeptColumn], row: dict[str, Any], place: str
) -> tuple[str | int | float | bool | None, ...]:
    """What a row holds in each column.

    Raises:
        DataError: A value is of another type than its column.
    """
    return tuple(column.value(row, place) for column in columns)
