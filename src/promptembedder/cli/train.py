"""`promptembedder train RECIPE`: data, model, loss, trainer from one YAML file; resumes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption
from promptembedder.errors import ConfigError

if TYPE_CHECKING:  # importing these takes seconds, and `--help` needs none of them
    from promptembedder.training import Ranks, Recipe, TrainingResult

__all__ = ["train"]


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe: model, data, loss, optim, evaluation, run.")],
    mixture: Annotated[Path | None, typer.Option(help="Mixture file; stands for --set data.mixture=...")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the trained model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data order, adapters and noise.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any recipe entry: optim.batch_size=32.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that holds a model or run.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model. Stopped at any moment, the same command goes on from the last checkpoint.

    `torchrun` or `accelerate launch` start it on several devices: docs/distributed.md.
    """
    named = {"data.mixture": mixture, "run.output": output, "optim.steps": steps, "run.seed": seed}
    changes = [*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    with one_line_errors():
        whole = _with_changes(_read(recipe), changes)
        from promptembedder.training import joined_ranks, leave_ranks

        ranks = joined_ranks()
        report = Report(as_json, speaks=ranks.is_first)
        result = _run(whole, report, ranks, overwrite=overwrite)
        leave_ranks()
    report.say(_table(result))
    report.say(f'Next: promptembedder search {result.output} "your question" --corpus FILE')
    report.result(_as_json(result))


def _run(recipe: "Recipe", report: Report, ranks: "Ranks", *, overwrite: bool) -> "TrainingResult":
    from promptembedder.cli.progress import TrainingBar
    from promptembedder.evaluation import similarity_evaluator
    from promptembedder.training import load_training_data, new_model, prepare_output, train_model

    checkpoint = prepare_output(recipe, overwrite=overwrite)
    evaluation, evaluator = recipe.evaluation, None
    if evaluation.sts is not None:
        evaluator = similarity_evaluator(
            Path(evaluation.sts), instruction=evaluation.instruction, split=evaluation.split, limit=evaluation.limit
        )
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    report.say(f"{data.pair_count} pairs in {len(data.tasks)} data sets: {', '.join(data.tasks)}")
    model = new_model(recipe, data)
    if checkpoint:
        report.say(f"going on from {checkpoint}")
    bars = [TrainingBar()] if ranks.is_first else []
    return train_model(model, data, recipe, evaluator=evaluator, callbacks=bars, checkpoint=checkpoint)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read recipe {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path} must be a mapping, got {type(content).__name__}.")
    return content


def _with_changes(content: dict[str, Any], changes: list[str]) -> "Recipe":
    """The recipe with `section.key=value` entries put in; values are read as YAML."""
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set needs KEY=VALUE, got {change!r}. Try optim.batch_size=32.")
        *sections, key = path.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {path}: {section!r} is no section of the recipe.")
        place[key] = yaml.safe_load(value)
    from promptembedder.storage import from_mapping
    from promptembedder.training import Recipe

    return from_mapping(Recipe, content)


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
