"""MkDocs hook that generates the reference of commands from the program."""

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main
from mkdocs.structure.files import File

from promptembedder.cli.app import app

__all__ = ["commands", "on_files", "page"]

_INTRODUCTION = """# Commands

`promptembedder COMMAND --help` prints the same. Every option with a value can also be set in the environment, as
`PROMPTEMBEDDER_COMMAND_OPTION`, or in a YAML file (`--config`). A flag overrides the environment, and the
environment overrides the file. A usage error is one line on stderr and exit code 2.

Every command has `--json` (one JSON object as the last line of stdout; messages go to stderr), `--config` and `--help`.
"""


def on_files(files: Any, *, config: Any) -> Any:
    """Add `cli.md` to the pages of the site."""
    files.append(File.generated(config, "cli.md", content=page()))
    return files


def page() -> str:
    """Return the reference of all commands in Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(words, command) for words, command in commands())])


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the full name and the command object of each visible command that is not a group."""
    yield from _leaves("promptembedder", typer.main.get_command(app))


def _leaves(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, child in command.commands.items():
        if child.hidden:  # a deprecated alias
            continue
        yield from _leaves(f"{words} {name}", child)


def _section(words: str, command: Any) -> str:
    shown = [one for one in command.params if one.name not in ("as_json", "config", "help")]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    usage = " ".join([words, *(_usage(one) for one in arguments), "[OPTIONS]"])
    lines = [f"## {words.removeprefix('promptembedder ')}", "", "```text", usage, "```", ""]
    lines += [_help(command), ""]
    if arguments:
        lines += ["| argument | is |", "|---|---|"]
        lines += [f"| `{_cell((one.metavar or one.name).upper())}` | {_cell(one.help or '')} |" for one in arguments]
        lines.append("")
    if options:
        lines += ["| option | default | |", "|---|---|---|"]
        lines += [f"| {_names(one)} | {_default(one)} | {_cell(one.help or '')} |" for one in options]
        lines.append("")
    return "\n".join(lines)


def _help(command: Any) -> str:
    """Return the help text, one line per paragraph; a paragraph that starts with `Example:` becomes a code block."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(_paragraph(one.replace("\b\n", "").replace("\b", "")) for one in paragraphs)


def _paragraph(text: str) -> str:
    head, found, rest = text.partition("Example: ")
    if not found or head.strip():
        return " ".join(text.split())
    return f"```console\n$ {' '.join(rest.split())}\n```"


def _usage(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return f"{names}{', several times' if option.multiple else ''}"


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        return "on" if option.default else "off"
    return "" if option.default in (None, [], ()) else f"`{_cell(str(option.default))}`"


def _cell(text: str) -> str:
    """Return text for a table cell: one line, with Markdown and HTML escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
