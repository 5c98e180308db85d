"""The program's commands, one file each."""

import typer

from promptembedder.cli.bench import bench
from promptembedder.cli.compile import compile_
from promptembedder.cli.console import prepare
from promptembedder.cli.embed import embed
from promptembedder.cli.evaluate import evaluate
from promptembedder.cli.index import index
from promptembedder.cli.info import info
from promptembedder.cli.move import move
from promptembedder.cli.mteb import mteb
from promptembedder.cli.quickstart import quickstart
from promptembedder.cli.search import search
from promptembedder.cli.serve import serve
from promptembedder.cli.train import train

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


for command in (quickstart, train, move, evaluate, embed, index, search, serve, info):
    app.command()(command)
app.command("compile")(compile_)
app.command("mteb", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    mteb
)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the program."""
    prepare()
    app()
