"""`promptembedder quickstart`: train and search on the docstrings of the installed Python."""

from typing import Annotated

import typer

from promptembedder.cli.console import Report, gc_paused, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, check_output_folder

__all__ = ["quickstart"]


def quickstart(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder of the trained model.")] = "runs/quickstart",
    backbone: Annotated[str, typer.Option(help="LLM for both roles.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 60,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs per step.")] = 24,
    queries: Annotated[int, typer.Option(min=1, help="Number of test queries.")] = 150,
    documents: Annotated[int, typer.Option(min=1, help="Number of test functions to search.")] = 400,
    max_seq_length: Annotated[int, typer.Option(min=8, help="Maximum tokens per function.")] = 64,
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of reader layers to run. Default: 24 of the 30 of smollm2-135m, else all."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Reader dtype: auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the docstrings of the Python installed here, score before and after, save, reload and search.

    Example: promptembedder quickstart --steps 60 --output runs/quickstart
    """
    report = Report(as_json)
    with one_line_errors():
        check_output_folder(output)
        with gc_paused():  # seconds
            from promptembedder.backbone import BackboneConfig
            from promptembedder.cli.quickstart_steps import Quickstart, quickstart_recipe
            from promptembedder.training import OptimConfig

        recipe = quickstart_recipe(
            output,
            reader=BackboneConfig(source=backbone, dtype=dtype, layers=layers),
            optim=OptimConfig(steps=steps, batch_size=batch_size),
            max_seq_length=max_seq_length,
            seed=seed,
        )
        result = Quickstart(recipe, report).run(queries, documents)
    report.result(result)
