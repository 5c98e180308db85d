"""`promptembedder quickstart`: the main job on real text that every Python has."""

from pathlib import Path
from typing import Annotated

import typer

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption

__all__ = ["quickstart"]


def quickstart(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the trained model.")] = Path(
        "runs/quickstart"
    ),
    backbone: Annotated[str, typer.Option(help="LLM for both roles.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 60,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs a step.")] = 24,
    queries: Annotated[int, typer.Option(min=1, help="Test queries.")] = 150,
    documents: Annotated[int, typer.Option(min=1, help="Test functions to search in.")] = 400,
    max_seq_length: Annotated[int, typer.Option(min=8, help="Tokens of a function that are read.")] = 64,
    dtype: Annotated[str, typer.Option(help="Of the reader: auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the docstrings of the Python installed here, score before and after, save, reload and search."""
    report = Report(as_json)
    with one_line_errors():
        from promptembedder.cli.quickstart_steps import Quickstart, quickstart_recipe  # seconds to import

        recipe = quickstart_recipe(
            str(output),
            backbone=backbone,
            dtype=dtype,
            steps=steps,
            batch_size=batch_size,
            max_seq_length=max_seq_length,
            seed=seed,
        )
        result = Quickstart(recipe, report).run(queries, documents)
    report.result(result)
