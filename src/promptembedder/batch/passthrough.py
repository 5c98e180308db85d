"""Passthrough columns: columns of a corpus that an embedding job copies to its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from promptembedder.data import COLUMN_KINDS, convert_value
from promptembedder.errors import ConfigError, DataError

__all__ = ["PassthroughColumn", "passthrough_values"]


@dataclass(frozen=True)
class PassthroughColumn:
    """A column that is copied to the output. A row without a value gets null.

    Attributes:
        name: Name of the column in the corpus and in the output.
        type: Type of the values: str, int, float or bool.
    """

    name: str
    type: str = "str"

    @classmethod
    def parse(cls, option: str) -> "PassthroughColumn":
        """Parse `NAME` or `NAME:TYPE`.

        Raises:
            ConfigError: If the type is unknown, or the name is blank or that of an output column.
        """
        name, colon, kind = option.rpartition(":")
        name, kind = (name, kind) if colon else (kind, "str")
        if kind not in COLUMN_KINDS:
            raise ConfigError(
                f"the column {option!r} has the unknown type {kind!r}. Use one of {', '.join(COLUMN_KINDS)}."
            )
        if not name.strip():
            raise ConfigError(f"the column {option!r} has no name. Write it as NAME or NAME:TYPE.")
        if name == "id" or name.startswith("embedding"):
            raise ConfigError(f"the column {name!r} is always written. Leave it out.")
        return cls(name, kind)

    @property
    def field(self) -> pa.Field:
        """Field in the schema of the output."""
        return pa.field(self.name, COLUMN_KINDS[self.type])

    def value(self, row: dict[str, Any], location: str) -> str | int | float | bool | None:
        """Convert the row's value to the type of the column. Numbers may be strings, as in CSV.

        Raises:
            DataError: If the value has another type. The message begins with `location`.
        """
        value = row.get(self.name)
        try:
            return convert_value(value, self.type)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{location}: column {self.name!r} contains {str(value)[:40]!r} ({type(value).__name__}), not "
                f"{self.type}. Correct or drop the row, or give the column another type."
            ) from error


def passthrough_values(
    columns: Sequence[PassthroughColumn], row: dict[str, Any], location: str
) -> tuple[str | int | float | bool | None, ...]:
    """Convert the row's value in each column.

    Raises:
        DataError: If a value has another type than its column.
    """
    return tuple(column.value(row, location) for column in columns)
