"""Console output: reports, one-line errors and logging."""

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from promptembedder.errors import PromptEmbedderError

__all__ = ["Report", "configure_logging", "err", "gc_paused", "one_line_errors", "out", "plural"]

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def plural(number: int, noun: str) -> str:
    """Format a number with its noun: `1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Report:
    """Output of a command: text and tables for people, or one JSON object as the last line of stdout."""

    def __init__(self, as_json: bool, *, enabled: bool = True) -> None:
        """Create the output of one command.

        Args:
            as_json: Print the result as JSON on stdout and everything else on stderr.
            enabled: If False, print nothing. Distributed training enables the report of rank 0 only.
        """
        self.as_json, self.enabled = as_json, enabled

    def print(self, *content: Any) -> None:
        """Print strings, tables or other rich objects for people: to stdout, or to stderr if stdout is for JSON."""
        if self.enabled:
            (err if self.as_json else out).print(*content, soft_wrap=all(isinstance(item, str) for item in content))

    def page(self, markdown: str) -> None:
        """Print a page of Markdown for people, to the stream that `print` uses."""
        from rich.markdown import Markdown  # its import takes a tenth of the time of `--help`

        self.print(Markdown(markdown))

    def result(self, content: dict[str, Any]) -> None:
        """Print the command's result as one JSON line on stdout, if JSON is enabled."""
        if self.as_json and self.enabled:
            print(json.dumps(content, ensure_ascii=False))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and exit code 2."""
    try:
        yield
    except (PromptEmbedderError, ImportError) as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        err.print("stopped", style="yellow")
        raise typer.Exit(130) from error


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection during imports, then exclude the imported objects from later collections.

    Collection takes a sixth of the import time, as long again while a model is loaded, and a second at exit.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def configure_logging() -> None:
    """Send log records to stderr and silence noisy loggers and warnings of other packages. Call it before imports."""
    handler = RichHandler(console=err, show_path=False, show_time=False)
    handler.setLevel(logging.INFO)  # bm25s sets its logger to DEBUG on import
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # transformers imports torchao if it is installed, which warns of missing GPU kernels; matplotlib warns of a HOME
    # that cannot be written
    for name in ("sentence_transformers", "torchao", "torch.utils._pytree", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|torch|accelerate|datasets)\..*")
    # the hub's client prints each retry twice; read when it is imported
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn and deadlock otherwise
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
