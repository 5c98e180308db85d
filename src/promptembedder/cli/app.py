"""The program's commands, one file each."""

import typer

from promptembedder.cli.console import prepare
from promptembedder.cli.info import info

__all__ = ["app", "main"]

app = typer.Typer(
    help="Turn any frozen LLM into an instruction-following text embedder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "PROMPTEMBEDDER"},
)


@app.callback()
def _program() -> None:
    """Keeps the commands' names even while there is only one."""


for command in (info,):
    app.command()(command)


def main() -> None:
    """Run the program."""
    prepare()
    app()
