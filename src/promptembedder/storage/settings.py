"""Conversion between nested dataclasses and YAML or JSON mappings, and from the names of format 3 to those of 4."""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from promptembedder.errors import ConfigError, first_line, short_repr

__all__ = [
    "REMOVED_SETTINGS",
    "RENAMED_SETTINGS",
    "RemovedSetting",
    "from_mapping",
    "migrate_conditioning",
    "migrate_settings",
    "migrate_tensor_name",
    "parse_yaml",
    "read_yaml",
    "to_mapping",
]

RENAMED_SETTINGS = {
    "anchor": "init_text",
    "anchor_learning_rate": "soft_prompt_learning_rate",
    "deep_every": "deep_prompt_interval",
    "deep_rank": "deep_prompt_rank",
    "exit_depth": "early_exit_fraction",
    "health": "monitor",
    "held_out_wordings": "held_out_variants",
    "text_layers": "text_pooling_layer",
    "text_rank": "whitening_rank",
    "text_states": "text_cache",
    "text_weight": "text_pooling_weight",
    "wordings": "instruction_variants",
}


@dataclass(frozen=True)
class RemovedSetting:
    """Setting that no longer exists.

    Attributes:
        dropped: Value that is ignored, because it means what every model does now.
        reason: What replaces any other value, for the error message.
    """

    dropped: Any
    reason: str


# by the configuration class and the name of the field
REMOVED_SETTINGS = {
    ("ModelConfig", "conditioning"): RemovedSetting(
        "instruction", "For soft tokens that depend on the text, write {text} into model.prompter.template."
    ),
    ("ModelConfig", "head"): RemovedSetting(False, "The linear head had no measured gain; train a model without it."),
}

Config = TypeVar("Config")


def to_mapping(config: Any) -> dict[str, Any]:
    """Convert a configuration dataclass to nested plain dicts and lists for JSON and YAML."""
    return dataclasses.asdict(config)


def from_mapping(cls: type[Config], mapping: Any, *, where: str = "") -> Config:
    """Build an instance of the dataclass `cls` from nested plain mappings. Absent keys keep their defaults.

    Args:
        where: Dotted path of `mapping` in the file, for messages.

    Raises:
        ConfigError: If a key is unknown, a value has the wrong type, or `mapping` is not a mapping.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping, got {type(mapping).__name__}.")
    hints = get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            removed = REMOVED_SETTINGS.get((cls.__name__, str(key)))
            if removed is not None and value == removed.dropped:
                continue
            if removed is not None:
                raise ConfigError(f"setting {short_repr(path)} has been removed. {removed.reason}")
            raise ConfigError(_unknown_key_message(path, str(key), list(fields)))
        values[key] = _convert(fields[key], value, path)
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


def _unknown_key_message(path: str, key: str, known: list[str]) -> str:
    renamed = RENAMED_SETTINGS.get(key)
    if renamed in known:
        return f"setting {short_repr(path)} has been renamed. Use {renamed!r} instead."
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"unknown setting {short_repr(path)}. {hint}Known here: {', '.join(known)}."


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(kind for kind in arguments if kind is not type(None)), value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where=path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path} must be a list, got {short_repr(value)}.")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a mapping, got {short_repr(value)}.")
        return {str(key): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as a string
        except (ValueError, OverflowError):  # an integer larger than any float
            pass
    exact = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not exact:
        raise ConfigError(f"{path} must be of type {kind.__name__}, got {short_repr(value)}.")
    return value


_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000  # after expanding aliases: ten lines of aliases can expand to 1e9 values


def read_yaml(path: Path) -> Any:
    """Read the value of a YAML file. Return None if the file is empty.

    Raises:
        ConfigError: If the file cannot be read, is not YAML of plain values, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"cannot read {path}: it has more than {_MAX_BYTES} bytes. Is it a file of settings?")
        return parse_yaml(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}. Give a YAML file in UTF-8.") from error
    except ConfigError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def parse_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        ConfigError: If the text is not YAML of plain values, contains itself, is nested too deeply, or expands to too
            many values.
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
        raise ConfigError(f"broken YAML{place}: {first_line(problem or error)}. Correct it.") from error
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # raised by PyYAML on invalid dates, numbers and tags
        raise ConfigError(
            f"a value of the YAML does not have its declared type ({first_line(error)}). Put it in quotes."
        ) from error


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values that the node expands to, each alias as often as it is used."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise ConfigError("a value of the YAML contains itself. Remove the alias (*).")
        return counts[id(node)]
    counts[id(node)] = 0
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, counts) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count(key, counts) + _count(value, counts) for key, value in node.value)
    if total > _MAX_VALUES:
        raise ConfigError(f"the YAML expands to more than {_MAX_VALUES} values. Remove aliases (*).")
    counts[id(node)] = total
    return total


_RENAMED_TENSOR_PARTS = {"readout": "text_pooling", "anchor_delta": "soft_prompt_delta", "log_gate": "log_scale"}


def migrate_settings(settings: Any) -> Any:
    """Return nested settings of format 3 under their names of format 4; other values are returned as they are."""
    if isinstance(settings, Mapping):
        return {RENAMED_SETTINGS.get(key, key): migrate_settings(value) for key, value in settings.items()}
    return settings


def migrate_conditioning(config: Mapping[str, Any], *, template: str) -> dict[str, Any]:
    """Return a model's saved configuration without `conditioning`, with the template that has the same prompts.

    Args:
        template: Template of the prompter if the configuration has none.
    """
    migrated = dict(config)
    if migrated.pop("conditioning", None) == "instruction_and_text":
        prompter = migrated.get("prompter")
        prompter = dict(prompter) if isinstance(prompter, Mapping) else {}
        migrated["prompter"] = {**prompter, "template": "{text}\n\n" + str(prompter.get("template", template))}
    return migrated


def migrate_tensor_name(name: str) -> str:
    """Return the name of a tensor in format 4."""
    return ".".join(_RENAMED_TENSOR_PARTS.get(part, part) for part in name.split("."))
