"""Conversion between nested dataclasses and YAML or JSON mappings."""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from promptembedder.errors import ConfigError, shown
from pathlib import Path
from typing import Any
import yaml
from promptembedder.errors import ConfigError, brief

__all__ = ['from_mapping', 'read_yaml', 'to_mapping', 'yaml_value']

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


_MOST_BYTES = 1 << 20
_MOST_VALUES = 100_000  # with all that aliases stand for: ten lines of them can mean a thousand million


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; None for an empty one.

    Raises:
        ConfigError: It cannot be read, is no YAML of plain values, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"cannot read {path}: it has more than {_MOST_BYTES} bytes. Is it a file of settings?")
        return yaml_value(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}. Give a YAML file in UTF-8.") from error
    except ConfigError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def yaml_value(text: str) -> Any:
    """The value of a text in YAML.

    Raises:
        ConfigError: It is no YAML of plain values, holds itself, is nested too deeply, or means too many values.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError("the YAML is nested too deeply. Write it flatter.") from error
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"broken YAML{place}: {brief(problem or error)}. Mend it.") from error
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # what PyYAML stumbles over in dates, numbers and tags that are none
        raise ConfigError(
            f"a value of the YAML is not what it says to be ({brief(error)}). Put it in quotes."
        ) from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values the node means, each alias as often as it is used."""
    if id(node) in known:
        if not known[id(node)]:
            raise ConfigError("a value of the YAML holds itself. Take out the alias (*).")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, known) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count(key, known) + _count(value, known) for key, value in node.value)
    if total > _MOST_VALUES:
        raise ConfigError(f"the YAML means more than {_MOST_VALUES} values. Take out aliases (*).")
    known[id(node)] = total
    return total
