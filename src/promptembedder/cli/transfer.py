"""`promptembedder move MODEL --to BACKBONE`: the same prompter on another reader; its alignment alone is trained."""

import dataclasses
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption
from promptembedder.errors import ConfigError
from promptembedder.storage import read_manifest

if TYPE_CHECKING:  # importing these takes seconds, and `--help` needs none of them
    from promptembedder.model import Move, PromptEmbedder
    from promptembedder.training import Recipe, TrainingData

__all__ = ["move"]


def move(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    to: Annotated[str, typer.Option(help="Backbone to move to: installed name, hub id, folder, GGUF or random:NAME.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the moved model.")],
    data: Annotated[Path | None, typer.Option(help="Mixture (.json) or file of pairs; none with --steps 0.")] = None,
    instruction: Annotated[
        list[str] | None, typer.Option(help="Wording for a file of pairs; give several.", allow_from_autoenv=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps; 0 leaves the closed form.")] = 200,
    start: Annotated[str, typer.Option(help="ridge, procrustes, vocabulary (no parameters) or random.")] = "ridge",
    carried: Annotated[bool, typer.Option(help="Take along what the trained alignment learned.")] = True,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the trained difference; none: full.")] = None,
    exit_depth: Annotated[
        str | None, typer.Option(help="Share of the new reader's layers that texts go through, in (0, 1], or auto.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the reader: auto, float32, bfloat16 or float16.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task, drawn with the seed.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a step.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of data order and drawn starts.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Start anew in a folder that holds a model or run.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a trained model to another LLM. The result opens on either; stopped, the same command goes on.

    Example: promptembedder move runs/mine --to gemma3-270m --data pairs.csv --instruction "Find it" -o on-gemma
    """
    report = Report(as_json)
    with one_line_errors():
        from promptembedder.backbone import BackboneConfig
        from promptembedder.model import Move
        from promptembedder.method import AlignmentConfig

        kind = "vocabulary" if start == "vocabulary" else "linear"
        alignment = AlignmentConfig(kind=kind, start="ridge" if kind == "vocabulary" else start, rank=rank)
        reader = BackboneConfig(source=to, dtype=dtype)
        target = Move(reader=reader, alignment=alignment, carried=carried, exit_depth=_depth(exit_depth))
        settings = {
            "data": {**_source(data, instruction or []), "limit": limit},
            "optim": {"steps": max(steps, 1), "batch_size": batch_size},
            "run": {"output": str(output), "seed": seed, "save_every": max(steps // 4, 1)},
        }
        if steps and data is None:
            raise ConfigError(f"{steps} steps need data. Give --data, or --steps 0 for the closed form alone.")
        if exit_depth == "auto" and data is None:
            raise ConfigError("--exit-depth auto compares losses and needs --data. Give it, or a number.")
        moving = _Moving(model, target, settings, report, overwrite=overwrite)
        result = moving.run(steps=steps, choose_exit=exit_depth == "auto")
    report.say(_table(result))
    report.say(f"Next: promptembedder evaluate {escape(str(output))} --tasks FILE")
    report.result(result)


class _Moving:
    """One move, step by step."""

    def __init__(
        self, source: Path, target: "Move", settings: dict[str, Any], report: Report, *, overwrite: bool
    ) -> None:
        self.source, self.target, self.settings = source, target, settings
        self.report, self.overwrite = report, overwrite

    def run(self, *, steps: int, choose_exit: bool) -> dict[str, Any]:
        """Move, train and save; returns the JSON result."""
        from promptembedder.model import PromptEmbedder
        from promptembedder.training import load_training_data, moved_model, prepare_output

        started = time.perf_counter()
        recipe = self._recipe()
        checkpoint = None if choose_exit else prepare_output(recipe, overwrite=self.overwrite)
        named = self.settings["data"].keys() & {"mixture", "pairs"}
        data = load_training_data(recipe.data, seed=recipe.run.seed) if named else None
        model = PromptEmbedder.from_pretrained(self.source)
        moved, fit = moved_model(model, self.target, data, seed=recipe.run.seed)
        model = None  # type: ignore[assignment]  # prompter and old reader leave the memory before training begins
        gc.collect()
        losses: dict[float, float] = {}
        if choose_exit and data is not None:
            losses = self._choose_exit(moved, data, recipe.run.seed)
            recipe = self._recipe()
            checkpoint = prepare_output(recipe, overwrite=self.overwrite)
        self.report.say(
            f"{fit.shared_strings} shared strings; the map explains {fit.held_out_r2:.2f} of the variance of held-out "
            f"ones, and mapped lengths are {fit.norm_ratio:.2f} of the target's before they are matched"
        )
        trained = sum(weight.numel() for weight in moved.encoder.trained_weights())
        if steps and data is not None:
            self._train(moved, data, recipe, checkpoint)
        else:
            moved.save(recipe.run.output)
        return {
            "model": recipe.run.output,
            "from": self.source.name,
            "readers": list(moved.readers),
            "exit_depth": moved.exit_depth,
            "exit_losses": {str(depth): round(loss, 4) for depth, loss in losses.items()},
            "fit": dataclasses.asdict(fit),
            "steps": steps,
            "trained_bytes": 4 * trained if steps else 0,
            "alignment_file_bytes": (Path(recipe.run.output) / "alignment.safetensors").stat().st_size,
            "seconds": round(time.perf_counter() - started, 1),
        }

    def _recipe(self) -> "Recipe":
        from promptembedder.model import model_config, moved_config
        from promptembedder.storage import from_mapping, to_mapping
        from promptembedder.training import Recipe

        config = moved_config(model_config(read_manifest(self.source)), self.target)
        return from_mapping(Recipe, {"model": to_mapping(config), **self.settings})

    def _choose_exit(self, moved: "PromptEmbedder", data: "TrainingData", seed: int) -> dict[float, float]:
        from promptembedder.training import chosen_exit_depth

        depth, losses = chosen_exit_depth(moved, data, seed=seed)
        told = ", ".join(f"{loss:.3f} at {tried:g}" for tried, loss in losses.items())
        self.report.say(f"texts go through {depth:g} of the layers; losses: {told}")
        self.target = dataclasses.replace(self.target, exit_depth=depth)
        return losses

    def _train(self, moved: "PromptEmbedder", data: "TrainingData", recipe: "Recipe", checkpoint: Path | None) -> None:
        from promptembedder.cli.console import TrainingBar
        from promptembedder.training import train_model

        if checkpoint:
            self.report.say(f"going on from {checkpoint}")
        train_model(moved, data, recipe, callbacks=[TrainingBar()], checkpoint=checkpoint)
        moved.encoder.settle()
        moved.save(recipe.run.output)


def _source(data: Path | None, wordings: list[str]) -> dict[str, Any]:
    """What of a recipe's `data` the options name."""
    if data is None:
        return {}
    if data.suffix == ".json":
        if wordings:
            raise ConfigError("a mixture brings its own instructions. Leave --instruction out.")
        return {"mixture": str(data)}
    return {"pairs": str(data), "instructions": wordings}


def _depth(exit_depth: str | None) -> float | None:
    if exit_depth is None or exit_depth == "auto":
        return None
    try:
        return float(exit_depth)
    except ValueError:
        raise ConfigError(f"--exit-depth must be a number in (0, 1] or auto, got {exit_depth!r}.") from None


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"moved: {escape(result['model'])}", show_header=False, title_justify="left")
    table.add_row("opens on", escape(", ".join(result["readers"])))
    table.add_row("exit depth", f"{result['exit_depth']:g}")
    table.add_row("steps", str(result["steps"]))
    table.add_row("trained", f"{result['trained_bytes'] / 1e6:.1f} MB")
    table.add_row("alignment file", f"{result['alignment_file_bytes'] / 1e6:.1f} MB")
    table.add_row("seconds", f"{result['seconds']:.0f}")
    return table
