"""Options that every command has, and the precedence flag > environment > file > default."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from promptembedder.errors import ConfigError
from promptembedder.storage import read_yaml

__all__ = ["ConfigOption", "JsonOption", "QuantizationOption", "ReaderOption", "whole_numbers", "words"]


def _read_config(context: Any, value: Path | None) -> Path | None:
    """Make the file's values the command's defaults; click puts environment and flags above them."""
    if value is None:
        return None
    try:
        content = read_yaml(value) or {}
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{value} must hold a mapping of option names to values")
    known = {_long_name(parameter) for parameter in context.command.params} - {"config", "help"}
    defaults: dict[str, Any] = {}
    for key, setting in content.items():
        name = str(key).replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise typer.BadParameter(f"{value}: unknown key {key!r}.{hint} Known: {', '.join(sorted(known))}")
        parameter = next(one for one in context.command.params if _long_name(one) == name)
        several = getattr(parameter, "multiple", False) or parameter.nargs == -1
        defaults[parameter.name] = [setting] if several and not isinstance(setting, list) else setting
    context.default_map = {**(context.default_map or {}), **defaults}
    return value


def _long_name(parameter: Any) -> str:
    longest: str = max(parameter.opts, key=len)
    return longest.lstrip("-").replace("_", "-")


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of option values; flags and environment win over it.",
        callback=_read_config,
        is_eager=True,
    ),
]
ReaderOption = Annotated[
    str | None, typer.Option("--reader", help="Of a model that was moved: the LLM to open it on; by default its own.")
]
QuantizationOption = Annotated[
    str | None, typer.Option("--quantization", help="int8: the reader's weights in a quarter of float32's memory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]


def words(listed: str) -> list[str]:
    """The words of an option that holds several, separated by commas."""
    # a list in a --config file arrives as its Python text
    return [word.strip(" '\"") for word in listed.strip("[]() ").split(",") if word.strip(" '\"")]


def whole_numbers(name: str, listed: str) -> tuple[int, ...]:
    """The numbers of the option `--name`, separated by commas.

    Raises:
        ConfigError: One is no whole number.
    """
    try:
        return tuple(int(word) for word in words(listed))
    except ValueError as error:
        raise ConfigError(f"--{name} must be whole numbers separated by commas, got {listed!r}.") from error
