"""Settings in YAML: plain values alone, and none that a small file blows up."""

from pathlib import Path
from typing import Any

import yaml

from promptembedder.errors import ConfigError, brief

__all__ = ["read_yaml", "yaml_value"]

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
