"""Command-line options shared by the benchmarks that train on a mixture."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSizeOption",
    "DtypeOption",
    "HeldOutOption",
    "LimitOption",
    "MaxLengthOption",
    "MixtureOption",
    "OnlyOption",
    "OutputOption",
    "PrompterOption",
    "RowsOption",
    "TasksOption",
    "WorkOption",
]

MixtureOption = Annotated[Path, typer.Option("--mixture", help="Mixture file to train on.")]
TasksOption = Annotated[Path, typer.Option("--tasks", help="Task file to score on.")]
OnlyOption = Annotated[list[str] | None, typer.Option("--only", help="These tasks of the file alone.")]
PrompterOption = Annotated[str, typer.Option("--prompter", help="The Prompting LLM.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="Rows of a step.")]
MaxLengthOption = Annotated[int, typer.Option("--max-length", help="Tokens of a text that are read.")]
RowsOption = Annotated[int, typer.Option("--rows", help="Rows of each task of the mixture, drawn with the seed.")]
HeldOutOption = Annotated[
    int,
    typer.Option("--held-out", help="Rows of each task of the mixture kept from training, to compare wordings on."),
]
LimitOption = Annotated[int, typer.Option("--limit", help="Rows of each evaluation task, drawn with seed 0.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Of the readers: auto, float32, bfloat16.")]
WorkOption = Annotated[Path, typer.Option("--work", help="Folder of the runs, their checkpoints and models.")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")]
