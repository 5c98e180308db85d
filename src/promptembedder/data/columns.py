"""Values of columns that are carried along beside texts: metadata, each of one kind."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from promptembedder.data.text import clean_text

__all__ = ["COLUMN_KINDS", "column_value"]

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
