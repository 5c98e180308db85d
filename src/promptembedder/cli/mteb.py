"""`promptembedder mteb run -m MODEL ...`: run the mteb program on a saved model."""

import sys
import warnings
from typing import Annotated

import typer

from promptembedder.errors import ConfigError, first_line

__all__ = ["mteb"]

_NAMES = ("-m", "--model")


def mteb(words: Annotated[list[str] | None, typer.Argument(help="Arguments of mteb.")] = None) -> None:
    """Run the program of mteb on a saved model.

    Example: promptembedder mteb run -m runs/mine -t STSBenchmark --output-folder results

    All arguments are passed to mteb. The folder after -m is first added to mteb's registry, because mteb finds models
    only there and on the hub.
    """
    words = list(words or [])
    from promptembedder import evaluation
    from promptembedder.model import saved_folder
    from promptembedder.storage import MANIFEST_NAME

    index = next((position for position, word in enumerate(words[:-1]) if word in _NAMES), None)
    if index is not None:
        name = words[index + 1]
        if (saved_folder(name) / MANIFEST_NAME).is_file():
            words[index + 1] = evaluation.register_model(name)
        elif name.startswith((".", "/", "~")):
            raise ConfigError(
                f"{name} is not a saved model: it has no {MANIFEST_NAME}. Give the folder of a saved model."
            )
    from mteb.cli.build_cli import main

    sys.argv = ["promptembedder mteb", *words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the metadata of a local model is always incomplete
        try:
            main()
        except KeyError as error:  # mteb raises it for unknown names of tasks, benchmarks and models
            if "not found" not in str(error):
                raise
            reason = str(error.args[0]).removeprefix("KeyError: ")
            raise ConfigError(f"mteb: {first_line(reason)} List the names: mteb available-tasks") from error
