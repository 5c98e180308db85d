"""Options that several commands share, with the precedence flag > environment > file > default, and renamed options."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from promptembedder.cli.console import one_line_errors
from promptembedder.errors import ConfigError
from promptembedder.storage import MANIFEST_NAME, check_writable, read_manifest, read_yaml

if TYPE_CHECKING:
    from promptembedder.model import PromptEmbedder

__all__ = [
    "RENAMED_OPTIONS",
    "Command",
    "ConfigOption",
    "DeviceOption",
    "DimensionsOption",
    "EarlyExitOption",
    "IdColumnOption",
    "JsonOption",
    "MaxBatchTokensOption",
    "MaxLengthOption",
    "PrecisionOption",
    "QuantizationOption",
    "ReaderOption",
    "TextColumnOption",
    "check_output_file",
    "check_output_folder",
    "check_renamed",
    "given_or_saved",
    "load_model",
    "parse_ints",
    "resolve_instruction",
    "split_commas",
]

# old and new names of options by command
RENAMED_OPTIONS: dict[str, dict[str, str]] = {
    "evaluate": {"--exit-depth": "--early-exit-fraction"},
    "transfer": {
        "--exit-depth": "--early-exit-fraction",
        "--carried": "--compose-alignment",
        "--no-carried": "--no-compose-alignment",
    },
}
_ALIASES = {"move": "transfer"}
_REMOVED_COMMANDS = {
    "bench": "The benchmarks are not part of the package any more: run `python -m benchmarks` in the repository."
}


class Command(TyperCommand):
    """Command that ends with one line for an error that the user can fix.

    Its help omits the environment variable of each option: the program's help states their rule once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the command as typer does."""
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            parameter.show_envvar = False  # type: ignore[attr-defined]

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with one_line_errors():
            return super().invoke(ctx)


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
TextColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="Column of the text. Default: text, document, passage, ...")
]
IdColumnOption = Annotated[
    str | None,
    typer.Option("--id-column", help="Column of the id. Default: id, _id or the row number from 0."),
]
DimensionsOption = Annotated[
    int | None,
    typer.Option("--dimensions", min=1, help="Number of first dimensions to keep, normalized again. Default: all."),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision", help="Numbers of the vectors: float32, int8 (scaled by vector) or binary (one bit each)."
    ),
]
MaxBatchTokensOption = Annotated[
    int,
    typer.Option("--max-batch-tokens", min=1, help="Maximum tokens per batch, padding included. Bounds memory."),
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


def check_output_file(output: Path | None) -> None:
    """Check before the work that a results file can be written, if one is named.

    Raises:
        ConfigError: The path is a folder, or its folder does not exist.
        SaveError: The file cannot be written.
    """
    if output is None:
        return
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}. Give a file in an existing folder.")
    check_writable(output)


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


def given_or_saved(given: str | None, role: str, model: Path) -> str:
    """Return the given instruction, else the one saved with the model for this role, else a blank string."""
    path = model / "config_sentence_transformers.json"
    saved = json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
    return (given or saved.get(role) or "").strip()


def resolve_instruction(given: str | None, role: str, model: Path, reader: str | None = None) -> str:
    """Return the given instruction, else the one saved with the model for this role, else the model's default."""
    from promptembedder.model import manifest_on, model_config

    default = model_config(manifest_on(read_manifest(model), reader, model)).default_instruction
    return given_or_saved(given, role, model) or default


def load_model(
    model: Path, instructions: Iterable[str], *, reader: str | None = None, quantization: str | None = None
) -> "PromptEmbedder":
    """Load a saved model, without its prompter if all instructions are compiled."""
    from promptembedder.model import PromptEmbedder, manifest_on

    compiled = set(instructions) <= set(manifest_on(read_manifest(model), reader, model).instructions)
    return PromptEmbedder.from_pretrained(model, reader=reader, quantization=quantization, with_prompter=not compiled)


def check_renamed(arguments: Sequence[str]) -> None:
    """Reject a removed command and the renamed options of a command, before the command line is parsed.

    Args:
        arguments: Command line without the program's name.

    Raises:
        ConfigError: A name of an earlier version is used. The message contains the new name.
    """
    if not arguments:
        return
    command = _ALIASES.get(arguments[0], arguments[0])
    if command in _REMOVED_COMMANDS:
        raise ConfigError(_REMOVED_COMMANDS[command])
    renamed = RENAMED_OPTIONS.get(command, {})
    for argument in arguments[1:]:
        if argument == "--":
            return
        option = argument.partition("=")[0]
        if option in renamed:
            raise ConfigError(f"the option {option} is now {renamed[option]}. Use the new name.")
