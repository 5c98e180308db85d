"""`promptembedder train RECIPE`, or `--data FILE`: data, model, loss, trainer from one YAML file or none; resumes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, importing, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, words
from promptembedder.errors import ConfigError
from promptembedder.storage import from_mapping, read_yaml, yaml_value

if TYPE_CHECKING:  # importing these takes seconds, and `--help` needs none of them
    from promptembedder.training import Ranks, Recipe, TrainingResult

__all__ = ["train"]


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="YAML recipe: model, data, loss, optim, evaluation, run. Not needed with --data."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL or Parquet of pairs: a query and the text that answers it.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Of --data: QUERY,TEXT or QUERY,TEXT,WRONG_TEXT; by default found by their names."),
    ] = None,
    instruction: Annotated[
        list[str] | None,
        # an environment variable would be split at spaces
        typer.Option(help="Of --data: what queries are read under; several are wordings.", allow_from_autoenv=False),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="LLM in both roles; by default smollm2-135m.")] = None,
    mixture: Annotated[Path | None, typer.Option(help="Mixture file; stands for --set data.mixture=...")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the trained model.")] = None,
    report_to: Annotated[
        str | None, typer.Option(help="Trackers, separated by commas: tensorboard, trackio, wandb.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data order, adapters and noise.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any recipe entry: optim.batch_size=32.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that holds a model or run.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model. Stopped at any moment, the same command goes on from the last checkpoint.

    Example: promptembedder train --data pairs.csv --instruction "Find the answer" --output runs/mine

    Example: promptembedder train recipes/pairs.yaml --set data.pairs=pairs.csv --output runs/mine

    `torchrun` or `accelerate launch` start it on several devices: docs/distributed.md.
    """
    named = {"data.mixture": mixture, "run.output": output, "optim.steps": steps, "run.seed": seed}
    changes = [*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    with one_line_errors():
        if recipe is None and data is None:
            raise ConfigError("there is nothing to train on. Name a recipe, or a table of pairs with --data FILE.")
        content = {} if recipe is None else _read(recipe)
        own = {
            "data.pairs": data and str(data),
            "data.columns": columns and words(columns),
            "data.instructions": instruction,
            "model.prompter.backbone": backbone and {"source": backbone, "dtype": "float32"},
            "model.reader.source": backbone,
            "run.report_to": report_to and words(report_to),
        }
        for path, value in own.items():
            if value is not None:
                _put(content, path, value)
        whole = _with_changes(content, changes)
        with importing():  # seconds
            from promptembedder.training import joined_ranks, leave_ranks

        ranks = joined_ranks()
        report = Report(as_json, speaks=ranks.is_first)
        result = _run(whole, report, ranks, overwrite=overwrite)
        leave_ranks()
    report.say(_table(result))
    report.say(f'Next: promptembedder search {result.output} "your question" --corpus FILE')
    report.result(_as_json(result))


def _run(recipe: "Recipe", report: Report, ranks: "Ranks", *, overwrite: bool) -> "TrainingResult":
    from promptembedder.cli.console import TrainingBar
    from promptembedder.data import pairs as pair_columns
    from promptembedder.evaluation import similarity_evaluator
    from promptembedder.training import ANY_COLUMNS, load_training_data, new_model, prepare_output, train_model

    checkpoint = prepare_output(recipe, overwrite=overwrite)
    evaluation, evaluator = recipe.evaluation, None
    if evaluation.sts is not None:
        evaluator = similarity_evaluator(
            Path(evaluation.sts), instruction=evaluation.instruction, split=evaluation.split, limit=evaluation.limit
        )
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    if recipe.data.pairs is not None:
        chosen = () if recipe.data.columns == ANY_COLUMNS else recipe.data.columns
        found = pair_columns(Path(recipe.data.pairs), chosen)
        report.say(f"queries are in column {escape(repr(found.anchor))}, their texts in {escape(repr(found.positive))}")
    report.say(f"{data.pair_count} pairs in {len(data.tasks)} data sets: {', '.join(data.tasks)}")
    model = new_model(recipe, data)
    if checkpoint:
        report.say(f"going on from {checkpoint}")
    bars = [TrainingBar()] if ranks.is_first else []
    return train_model(model, data, recipe, evaluator=evaluator, callbacks=bars, checkpoint=checkpoint)


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path} must be a mapping, got {type(content).__name__}.")
    return content


def _with_changes(content: dict[str, Any], changes: list[str]) -> "Recipe":
    """The recipe with `section.key=value` entries put in; values are read as YAML."""
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set needs KEY=VALUE, got {change!r}. Try optim.batch_size=32.")
        _put(content, path, yaml_value(value))
    from promptembedder.training import Recipe

    return from_mapping(Recipe, content)


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {path}: {section!r} is no section of the recipe.")
    place[key] = value


def _as_json(result: "TrainingResult") -> dict[str, Any]:
    return {
        "model": str(result.output),
        "steps": result.steps,
        "resumed_from": result.resumed_from,
        "train_pairs": result.train_pairs,
        "trained_parameters": result.trained_parameters,
        "train_loss": result.train_loss,
        "seconds": round(result.seconds, 1),
        "metrics": result.metrics,
    }


def _table(result: "TrainingResult") -> Table:
    table = Table(title=f"trained: {result.output}", show_header=False, title_justify="left")
    table.add_row("steps", str(result.steps))
    table.add_row("trained parameters", f"{result.trained_parameters:,}")
    table.add_row("mean training loss", f"{result.train_loss:.3f}")
    for name, value in result.metrics.items():
        if "spearman" in name or name.endswith("_loss"):
            table.add_row(name, f"{value:.4f}")
    table.add_row("seconds", f"{result.seconds:.0f}")
    return table
