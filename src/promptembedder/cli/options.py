"""Options that several commands share, with the precedence flag > environment > file > default."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from promptembedder.cli.renamed import RENAMED_OPTIONS
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, check_writable, read_yaml

__all__ = [
    "Command",
    "ConfigOption",
    "DeviceOption",
    "DimensionsOption",
    "EarlyExitOption",
    "JsonOption",
    "MaxLengthOption",
    "QuantizationOption",
    "ReaderOption",
    "check_output_folder",
    "parse_ints",
    "split_commas",
]


class Command(TyperCommand):
    """Command whose help omits the environment variable of each option. The program's help states their rule once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the command as typer does."""
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            parameter.show_envvar = False  # type: ignore[attr-defined]


def _read_config(context: Any, value: Path | None) -> Path | None:
    """Use the file's values as the command's defaults. Environment and flags override them."""
    if value is None:
        return None
    try:
        content = read_yaml(value) or {}
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{value} must contain a mapping of option names to values")
    known = {_long_name(parameter) for parameter in context.command.params} - {"config", "help"}
    defaults: dict[str, Any] = {}
    for key, setting in content.items():
        name = str(key).replace("_", "-")
        if name not in known:
            if f"--{name}" in RENAMED_OPTIONS.get(context.command.name, {}):
                new = RENAMED_OPTIONS[context.command.name][f"--{name}"].removeprefix("--")
                raise typer.BadParameter(f"{value}: the key {key!r} is now {new!r}. Use the new name.")
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
        help="YAML file of option values. Flags and environment override it.",
        callback=_read_config,
        is_eager=True,
    ),
]
ReaderOption = Annotated[
    str | None, typer.Option("--reader", help="LLM to load a transferred model on. Default: the model's main reader.")
]
QuantizationOption = Annotated[
    str | None,
    typer.Option("--quantization", help="int8 stores the reader's weights in a quarter of float32's memory."),
]
EarlyExitOption = Annotated[
    float | None,
    typer.Option(
        "--early-exit-fraction", help="Fraction of the reader's layers to run, in (0, 1]. Default: the model's."
    ),
]
MaxLengthOption = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Maximum tokens per text. Default: the model's.")
]
DimensionsOption = Annotated[
    int | None,
    typer.Option("--dimensions", min=1, help="Number of first dimensions to keep, normalized again. Default: all."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Device: cpu, cuda, cuda:1. Default: a GPU if available.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def split_commas(listed: str) -> list[str]:
    """Split the value of an option that contains several words separated by commas."""
    # a list in a --config file arrives as its Python text
    return [word.strip(" '\"") for word in listed.strip("[]() ").split(",") if word.strip(" '\"")]


def parse_ints(name: str, listed: str) -> tuple[int, ...]:
    """Parse the whole numbers of the option `--name`, separated by commas.

    Raises:
        ConfigError: A part is not a whole number.
    """
    try:
        return tuple(int(word) for word in split_commas(listed))
    except ValueError as error:
        raise ConfigError(f"--{name} must be whole numbers separated by commas, got {listed!r}.") from error


def check_output_folder(output: str) -> None:
    """Check that training may write to a folder: it is new, empty, or contains a model or run.

    Raises:
        ConfigError: The name is blank, a file, or a folder of other files, which training would overwrite.
        SaveError: The folder cannot be written.
    """
    folder = Path(output)
    if not output.strip():
        raise ConfigError("the output folder is blank. Give the path of a new folder with --output.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{output} is a file. Give the path of a new folder with --output.")
    check_writable(folder)
    if not folder.is_dir():
        return
    names = [path.name for path in folder.iterdir()]
    ours = any(name in (MANIFEST_NAME, "recipe.yaml") or name.startswith("checkpoint-") for name in names)
    if not ours and any(not name.startswith(".") for name in names):
        raise ConfigError(f"{output} contains other files and neither a model nor a run. Choose a new or empty folder.")
