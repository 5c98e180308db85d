"""Settings as frozen dataclasses, to and from plain mappings: one field, one default, one place."""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from promptembedder.errors import ConfigError, shown

__all__ = ["from_mapping", "to_mapping"]

Settings = TypeVar("Settings")


def to_mapping(settings: Any) -> dict[str, Any]:
    """Nested plain dicts and lists of a settings dataclass, fit for JSON and YAML."""
    return dataclasses.asdict(settings)


def from_mapping(cls: type[Settings], mapping: Any, *, where: str = "") -> Settings:
    """An instance of the dataclass `cls` from nested plain mappings; absent keys keep their defaults.

    Args:
        where: Dotted path of `mapping` in the whole file, for messages.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or `mapping` is no mapping.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping, got {type(mapping).__name__}.")
    hints = get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(_unknown_key(path, str(key), list(fields)))
        values[key] = _converted(fields[key], value, path)
    try:
        return cls(**values)
    except TypeError as error:  # a field without default is missing
        missing = [
            field.name
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
            if field.name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        raise ConfigError(f"{where or 'the configuration'} lacks: {', '.join(missing)}.") from error


def _unknown_key(path: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"unknown setting {shown(path)}. {hint}Known here: {', '.join(known)}."


def _converted(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _converted(next(kind for kind in arguments if kind is not type(None)), value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where=path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path} must be a list, got {shown(value)}.")
        return tuple(_converted(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a mapping, got {shown(value)}.")
        return {str(key): _converted(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _scalar(hint, value, path)


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as a string
        except (ValueError, OverflowError):  # a whole number larger than any float
            pass
    exact = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not exact:
        raise ConfigError(f"{path} must be of type {kind.__name__}, got {shown(value)}.")
    return value
