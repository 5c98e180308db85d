"""Assembly of the program from its commands, one file each."""

import sys
from typing import Annotated

import typer

from promptembedder.cli.compare import compare
from promptembedder.cli.compile import compile_
from promptembedder.cli.console import configure_logging, one_line_errors
from promptembedder.cli.doctor import doctor
from promptembedder.cli.embed import embed
from promptembedder.cli.evaluate import evaluate
from promptembedder.cli.export import export
from promptembedder.cli.index import index
from promptembedder.cli.info import info
from promptembedder.cli.mteb import mteb
from promptembedder.cli.options import Command, check_renamed
from promptembedder.cli.plot import plot
from promptembedder.cli.quickstart import quickstart
from promptembedder.cli.search import search
from promptembedder.cli.serve import serve
from promptembedder.cli.train import train
from promptembedder.cli.transfer import transfer

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "PROMPTEMBEDDER"},
)


def _print_version(requested: bool) -> bool:
    if requested:
        from importlib.metadata import version  # a slow import that `--help` does not need

        print(version("promptembedder"))
        raise typer.Exit
    return requested


@app.callback()
def _program(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Turn any frozen LLM into an instruction-following text embedder.

    Options with a value can also be set in the environment, as PROMPTEMBEDDER_COMMAND_OPTION, for example
    PROMPTEMBEDDER_SERVE_PORT, or in a YAML file (--config). A flag overrides the environment, which overrides the file.

    Example: promptembedder quickstart
    """


for command in (quickstart, train, transfer, evaluate, compare, embed, index, search, serve, export, info, doctor):
    app.command(cls=Command)(command)
app.command("compile", cls=Command)(compile_)
app.command("move", cls=Command, hidden=True)(transfer)  # deprecated alias for one release
app.command(
    "mteb",
    cls=Command,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(mteb)
app.add_typer(plot, name="plot")


def main() -> None:
    """Run the program."""
    configure_logging()
    try:
        with one_line_errors():
            check_renamed(sys.argv[1:])
    except typer.Exit as error:
        raise SystemExit(error.exit_code) from None
    app()
