"""Commands and options of earlier versions, and the names that replace them."""

from collections.abc import Sequence

from promptembedder.errors import ConfigError

__all__ = ["RENAMED_OPTIONS", "check_renamed"]

# by command
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
