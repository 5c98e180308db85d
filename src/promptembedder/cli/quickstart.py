"""`promptembedder quickstart`: the main job on real text that every Python has."""

from pathlib import Path
from typing import Annotated

import typer

from promptembedder.cli.console import Report, importing, one_line_errors
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
    layers: Annotated[
        int | None, typer.Option(min=1, help="Reader's first N layers; by default 24 of smollm2-135m's 30, else all.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the reader: auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the docstrings of the Python installed here, score before and after, save, reload and search.

    Example: promptembedder quickstart --steps 60 --output runs/quickstart
    """
    report = Report(as_json)
    with one_line_errors():
        with importing():  # seconds
            from promptembedder.backbone import BackboneConfig
            from promptembedder.cli.quickstart_steps import Quickstart, quickstart_recipe
            from promptembedder.training import OptimConfig

        recipe = quickstart_recipe(
            str(output),
            reader=BackboneConfig(source=backbone, dtype=dtype, layers=layers),
            optim=OptimConfig(steps=steps, batch_size=batch_size),
            max_seq_length=max_seq_length,
            seed=seed,
        )
        result = Quickstart(recipe, report).run(queries, documents)
    report.result(result)
