"""How commands speak: results to stdout, progress and logs to stderr, one line for a mistake."""

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

__all__ = ["Report", "importing", "one_line_errors", "prepare"]

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


class Report:
    """What a command has to say: a table and words for people, or one JSON object as the last line of stdout."""

    def __init__(self, as_json: bool, *, speaks: bool = True) -> None:
        """Speak JSON if `as_json`.

        Args:
            speaks: False says nothing: another process of the same run speaks.
        """
        self.as_json, self.speaks = as_json, speaks

    def say(self, *words: Any) -> None:
        """A sentence, table or other rich object for people; goes to stderr when stdout is for JSON."""
        if self.speaks:
            (err if self.as_json else out).print(*words, soft_wrap=all(isinstance(word, str) for word in words))

    def page(self, markdown: str) -> None:
        """A page of Markdown for people; goes where `say` goes."""
        from rich.markdown import Markdown  # a tenth of the time that `--help` takes

        self.say(Markdown(markdown))

    def result(self, content: dict[str, Any]) -> None:
        """The command's result; printed only as JSON, since people were told with `say`."""
        if self.as_json and self.speaks:
            print(json.dumps(content, ensure_ascii=False))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit code 2."""
    try:
        yield
    except (PromptEmbedderError, ImportError) as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        err.print("stopped", style="yellow")
        raise typer.Exit(130) from error


@contextmanager
def importing() -> Iterator[None]:
    """Modules are no garbage: while this lasts Python looks for none, and later not among what was imported.

    Looking takes a sixth of the time of importing, as long again while a model is loaded, and a second at the end.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def prepare() -> None:
    """Quiet foreign loggers, once, before they are imported."""
    handler = RichHandler(console=err, show_path=False, show_time=False)
    handler.setLevel(logging.INFO)  # bm25s raises its own logger to DEBUG when it is imported
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # transformers imports torchao where it is installed, which warns of kernels for GPUs that are not there
    for name in ("sentence_transformers", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|torch|accelerate|datasets)\..*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn and deadlock otherwise
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
