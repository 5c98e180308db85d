"""`promptembedder train RECIPE` or `--data FILE`: train from a recipe or from a table of pairs, and resume."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, gc_paused, plural
from promptembedder.cli.options import ConfigOption, JsonOption, check_output_folder, split_commas
from promptembedder.errors import ConfigError
from promptembedder.storage import from_mapping, parse_yaml, read_manifest, read_yaml, to_mapping

if TYPE_CHECKING:  # slow imports that `--help` does not need
    from promptembedder.training import Ranks, Recipe, TrainingResult

__all__ = ["train"]


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="YAML recipe: model, data, loss, optim, evaluation, run. Not needed with --data."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL or Parquet of pairs: a query and its relevant text.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of --data: QUERY,TEXT or QUERY,TEXT,NEGATIVE. Default: detected by name."),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Character between the values of a CSV. Default: detected in its first line.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of --data, such as cp1252. Default: utf-8.")] = None,
    instruction: Annotated[
        list[str] | None,
        # an environment variable would be split at spaces
        typer.Option(
            help="Instruction for the queries of --data. Repeatable: several wordings.", allow_from_autoenv=False
        ),
    ] = None,
    initial_model: Annotated[
        str | None,
        typer.Option("--from", help="Saved model to train further, as folder or hub id. Default: a new one."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="LLM for both roles. Default: smollm2-135m.")] = None,
    mixture: Annotated[Path | None, typer.Option(help="Mixture file. Short for --set data.mixture=...")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Folder of the trained model.")] = None,
    report_to: Annotated[
        str | None, typer.Option(help="Trackers, separated by commas: tensorboard, trackio, wandb.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. Default: the recipe's, else 100.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, instead of --steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data order, adapters and noise.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Recipe entry, for example optim.batch_size=32. Repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the model or run in the output folder.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model. After an interruption, the same command resumes from the last checkpoint.

    Example: promptembedder train --data pairs.csv --instruction "Find the answer" --output runs/mine

    Example: promptembedder train --data new.csv --from runs/mine --epochs 2 --output runs/tuned

    Example: promptembedder train recipes/pairs.yaml --set data.pairs=pairs.csv --output runs/mine

    Start it on several devices with `torchrun` or `accelerate launch`: docs/distributed.md.
    """
    named: dict[str, Any] = {"data.mixture": mixture, "run.output": output, "optim.steps": steps, "run.seed": seed}
    named |= {"optim.epochs": epochs}
    changes = [*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    if recipe is None and data is None:
        raise ConfigError("no training data. Give a recipe, or a table of pairs with --data FILE.")
    if output is not None:
        check_output_folder(output)
    if steps is not None and epochs is not None:
        raise ConfigError("--steps and --epochs both set the length of training. Give one of them.")
    content = {} if recipe is None else _read(recipe)
    if initial_model is not None:
        if backbone is not None:
            raise ConfigError("--from keeps the LLMs of the model. Omit --backbone; `transfer` changes the reader.")
        content["model"] = _saved_config(initial_model)
    entries = {
        "data.pairs": data and str(data),
        "data.columns": columns and split_commas(columns),
        "data.delimiter": delimiter,
        "data.encoding": encoding,
        "data.instructions": instruction,
        "model.prompter.backbone": backbone and {"source": backbone, "dtype": "float32"},
        "model.reader.source": backbone,
        "run.initial_model": initial_model,
        "run.report_to": report_to and split_commas(report_to),
    }
    for path, value in entries.items():
        if value is not None:
            _put(content, path, value)
    full_recipe = _apply_changes(content, changes)
    check_output_folder(full_recipe.run.output)
    with gc_paused():  # seconds
        from promptembedder.training import destroy_distributed, init_distributed

    ranks = init_distributed()
    report = Report(as_json, enabled=ranks.is_first)
    result = _run(full_recipe, report, ranks, overwrite=overwrite)
    destroy_distributed()
    report.print(_table(result))
    report.print(f"Next: {escape(_next_command(result))}")
    report.result(_to_json(result))


def _run(recipe: "Recipe", report: Report, ranks: "Ranks", *, overwrite: bool) -> "TrainingResult":
    from promptembedder.cli.progress import training_progress, unit_progress
    from promptembedder.data import detect_pair_columns
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
        found = detect_pair_columns(
            Path(recipe.data.pairs), chosen, delimiter=recipe.data.delimiter, encoding=recipe.data.encoding
        )
        report.print(f"query column: {escape(repr(found.anchor))}, text column: {escape(repr(found.positive))}")
    report.print(
        f"{plural(data.pair_count, 'pair')} in {plural(len(data.tasks), 'data set')}: {escape(', '.join(data.tasks))}"
    )
    model = new_model(recipe, data)
    if checkpoint:
        report.print(f"resuming from {checkpoint}")
    bars = [training_progress()] if ranks.is_first else []
    with unit_progress() as on_progress:
        return train_model(
            model, data, recipe, evaluator=evaluator, callbacks=bars, checkpoint=checkpoint, on_progress=on_progress
        )


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path} must be a mapping, got {type(content).__name__}.")
    return content


def _saved_config(name: str) -> dict[str, Any]:
    """Return the configuration of a saved model as the section `model` of a recipe."""
    with gc_paused():  # seconds
        from promptembedder.model import model_config, saved_folder

    return to_mapping(model_config(read_manifest(saved_folder(name))))


def _apply_changes(content: dict[str, Any], changes: list[str]) -> "Recipe":
    """Build the recipe with the `section.key=value` entries applied. Values are parsed as YAML."""
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set needs KEY=VALUE, got {change!r}. Try optim.batch_size=32.")
        _put(content, path, parse_yaml(value))
    from promptembedder.training import Recipe

    return from_mapping(Recipe, content)


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    target = content
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {path}: {section!r} is not a section of the recipe.")
    target[key] = value


def _next_command(result: "TrainingResult") -> str:
    command = f'promptembedder search {shlex.quote(str(result.output))} "your question" --corpus FILE'
    if len(result.query_instructions) > 1:  # the tasks have several instructions, so that the model has no default
        command += f" --instruction {shlex.quote(result.query_instructions[0])}"
    return command


def _to_json(result: "TrainingResult") -> dict[str, Any]:
    return {
        "model": str(result.output),
        "steps": result.steps,
        "resumed_from": result.resumed_from,
        "best_step": result.best_step,
        "train_pairs": result.train_pairs,
        "trained_parameters": result.trained_parameters,
        "train_loss": result.train_loss,
        "seconds": round(result.seconds, 1),
        "metrics": result.metrics,
        "prompts": result.prompts,
    }


def _table(result: "TrainingResult") -> Table:
    table = Table(title=f"trained: {result.output}", show_header=False, title_justify="left")
    table.add_row("steps", str(result.steps))
    if result.best_step is not None:
        table.add_row("best step, saved", str(result.best_step))
    table.add_row("trained parameters", f"{result.trained_parameters:,}")
    for name, text in result.prompts.items():
        table.add_row(f"{name} instruction", escape(text))
    table.add_row("mean training loss", f"{result.train_loss:.3f}")
    for name, value in result.metrics.items():
        if "spearman" in name or name.endswith("_loss"):
            table.add_row(name, f"{value:.4f}")
    table.add_row("seconds", f"{result.seconds:.0f}")
    return table
