"""The program's commands, one file each."""

from typing import Annotated

import typer

from benchmarks.cli import bench
from promptembedder.cli.compile import compile_
from promptembedder.cli.console import prepare
from promptembedder.cli.doctor import doctor
from promptembedder.cli.embed import embed
from promptembedder.cli.evaluate import evaluate
from promptembedder.cli.export import export
from promptembedder.cli.index import index
from promptembedder.cli.info import info
from promptembedder.cli.transfer import move
from promptembedder.cli.mteb import mteb
from promptembedder.cli.plot import plot
from promptembedder.cli.quickstart import quickstart
from promptembedder.cli.search import search
from promptembedder.cli.serve import serve
from promptembedder.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "PROMPTEMBEDDER"},
)


def _say_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version  # takes a while, and `--help` does without

        print(version("promptembedder"))
        raise typer.Exit
    return asked


@app.callback()
def _program(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="The version, and nothing else.",
            callback=_say_version,
            is_eager=True,
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Turn any frozen LLM into an instruction-following text embedder.

    Example: promptembedder quickstart
    """


for command in (quickstart, train, move, evaluate, embed, index, search, serve, export, info, doctor):
    app.command()(command)
app.command("compile")(compile_)
app.command(
    "mteb", add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)(mteb)
app.add_typer(bench, name="bench")
app.add_typer(plot, name="plot")


def main() -> None:
    """Run the program."""
    prepare()
    app()
