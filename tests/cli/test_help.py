"""Every command says how it is called, and what it says can be called."""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer.main
from typer.testing import Result

from promptembedder.cli.app import app

Run = Callable[..., Result]


def commands() -> Iterator[tuple[str, Any]]:
    """All commands with the words that call them, groups too."""
    todo = [("", typer.main.get_command(app))]
    while todo:
        words, command = todo.pop()
        yield words, command
        todo += [(f"{words} {name}".strip(), child) for name, child in getattr(command, "commands", {}).items()]


def examples(command: Any) -> list[str]:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    said = [" ".join(one.replace("\b", "").split()) for one in paragraphs]
    return [one.removeprefix("Example: ") for one in said if one.startswith("Example: ")]


ALL = dict(commands())


@pytest.mark.parametrize(
    "words", [words for words, command in ALL.items() if not (hasattr(command, "commands") or command.hidden)]
)
def test_a_commands_help_holds_an_example_that_can_be_called(
    words: str, run: Run, reads: Callable[[str], None]
) -> None:
    said = examples(ALL[words])
    assert said
    for line in said:
        assert line.startswith(f"promptembedder {words}")
        reads(line)
    if words == "mteb":  # its help is mteb's own
        return
    shown = run(*words.split(), "--help")
    assert shown.exit_code == 0
    for line in said:
        assert re.sub(r"\W", "", line) in re.sub(r"\W", "", shown.stdout)


def test_a_line_with_an_unknown_option_is_no_example(reads: Callable[[str], None]) -> None:
    with pytest.raises(Exception, match="No such option: --nothing"):
        reads("promptembedder info runs/mine --nothing")


def test_the_rule_of_environment_variables_is_in_the_programs_help_alone(run: Run) -> None:
    """Each option had its variable in a column of its own, which tripled the length of the help and was truncated."""
    assert "PROMPTEMBEDDER_COMMAND_OPTION" in run("--help").stdout
    for words in ("embed", "serve", "plot map"):
        text = run(*words.split(), "--help").stdout
        assert "env var" not in text
        assert f"PROMPTEMBEDDER_{words.split()[0].upper()}_" not in text
    refused = run("serve", "none", env={"PROMPTEMBEDDER_SERVE_PORT": "many"})
    assert refused.exit_code == 2 and "--port" in refused.stderr  # the variables still work


def test_the_version_is_said_alone(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{version('promptembedder')}\n", "")


def test_the_shell_can_complete_commands(run: Run) -> None:
    result = run(
        env={"_PROMPTEMBEDDER_COMPLETE": "complete_bash", "COMP_WORDS": "promptembedder ser", "COMP_CWORD": "1"}
    )
    assert "serve" in result.stdout.split()
