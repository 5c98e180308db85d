"""`promptembedder mteb run -m MODEL ...`: mteb's own program, which then knows saved models by their folders."""

import sys
import warnings
from typing import Annotated

import typer

from promptembedder.cli.console import one_line_errors
from promptembedder.errors import ConfigError

__all__ = ["mteb"]

_NAMES = ("-m", "--model")


def mteb(words: Annotated[list[str] | None, typer.Argument(help="All of it goes to mteb.")] = None) -> None:
    """Run the program of mteb on a saved model.

    Example: promptembedder mteb run -m runs/mine -t STSBenchmark --output-folder results

    All words go to mteb; a saved model's folder after -m is put into its registry first, since it looks there and on
    the hub alone.
    """
    words = list(words or [])
    with one_line_errors():
        from promptembedder import evaluation
        from promptembedder.model import saved_folder
        from promptembedder.storage import MANIFEST_NAME

        place = next((place for place, word in enumerate(words[:-1]) if word in _NAMES), None)
        if place is not None:
            named = words[place + 1]
            if (saved_folder(named) / MANIFEST_NAME).is_file():
                words[place + 1] = evaluation.register_model(named)
            elif named.startswith((".", "/", "~")):
                raise ConfigError(
                    f"{named} is no saved model: it has no {MANIFEST_NAME}. Give a folder that save wrote."
                )
        from mteb.cli.build_cli import main
    sys.argv = ["promptembedder mteb", *words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is known of a model of one's own is never complete
        main()
