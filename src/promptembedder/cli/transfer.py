"""`promptembedder transfer MODEL --to BACKBONE`: train an alignment of the same prompter to another reader."""

import dataclasses
import gc
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report
from promptembedder.cli.options import ConfigOption, JsonOption, check_output_folder, given_or_saved
from promptembedder.errors import ConfigError
from promptembedder.storage import read_manifest

if TYPE_CHECKING:  # slow imports that `--help` does not need
    from promptembedder.model import PromptEmbedder, TransferConfig
    from promptembedder.training import Recipe, TrainingData

__all__ = ["transfer"]


def transfer(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    to: Annotated[
        str, typer.Option(help="Backbone to transfer to: installed name, hub id, folder, GGUF or random:NAME.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder of the transferred model.")],
    data: Annotated[
        Path | None, typer.Option(help="Mixture (.json) or file of pairs. Not needed with --steps 0.")
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            help="Instruction for a file of pairs. Repeatable: several wordings. Default: the model's.",
            allow_from_autoenv=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps. 0 keeps the closed-form alignment.")] = 200,
    start: Annotated[
        str, typer.Option(help="Initial alignment: ridge, procrustes, vocabulary (no parameters) or random.")
    ] = "ridge",
    compose_alignment: Annotated[
        bool, typer.Option(help="Compose the trained alignment with a map between the readers.")
    ] = True,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the trained alignment delta. Default: full rank.")
    ] = None,
    early_exit_fraction: Annotated[
        str | None, typer.Option(help="Fraction of the new reader's layers to run, in (0, 1], or auto.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Reader dtype: auto, float32, bfloat16 or float16.")] = "auto",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of rows per task, drawn with the seed.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs per step.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of data order and random initialisation.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace the model or run in the output folder.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Transfer a trained model to another LLM. The result runs on both LLMs. The same command resumes after a stop.

    Example: promptembedder transfer runs/mine --to gemma3-270m --data pairs.csv --instruction "Find it" -o on-gemma
    """
    report = Report(as_json)
    check_output_folder(output)
    from promptembedder.backbone import BackboneConfig
    from promptembedder.method import AlignmentConfig
    from promptembedder.model import TransferConfig

    kind = "vocabulary" if start == "vocabulary" else "linear"
    alignment = AlignmentConfig(kind=kind, start="ridge" if kind == "vocabulary" else start, rank=rank)
    reader = BackboneConfig(source=to, dtype=dtype)
    target = TransferConfig(
        reader=reader,
        alignment=alignment,
        compose_alignment=compose_alignment,
        early_exit_fraction=_parse_fraction(early_exit_fraction),
    )
    recipe = {
        "data": {**_data_config(data, instruction or [], model), "limit": limit},
        "optim": {"steps": max(steps, 1), "batch_size": batch_size},
        "run": {"output": output, "seed": seed, "save_every": max(steps // 4, 1)},
    }
    if steps and data is None:
        raise ConfigError(f"{steps} steps need data. Give --data, or --steps 0 for the closed-form alignment.")
    if early_exit_fraction == "auto" and data is None:
        raise ConfigError("--early-exit-fraction auto compares losses and needs --data. Give --data, or a number.")
    run = _TransferRun(model, target, recipe, report, overwrite=overwrite)
    result = run.run(steps=steps, choose_exit=early_exit_fraction == "auto")
    report.print(_table(result))
    report.print(f"Next: promptembedder evaluate {escape(shlex.quote(output))} --tasks FILE")
    report.result(result)


class _TransferRun:
    """Steps of one transfer."""

    def __init__(
        self, source: Path, target: "TransferConfig", recipe: dict[str, Any], report: Report, *, overwrite: bool
    ) -> None:
        self.source, self.target, self.recipe = source, target, recipe
        self.report, self.overwrite = report, overwrite

    def run(self, *, steps: int, choose_exit: bool) -> dict[str, Any]:
        """Transfer, train and save the model, and return the JSON result."""
        from promptembedder.model import PromptEmbedder
        from promptembedder.training import build_transferred_model, load_training_data, prepare_output

        started = time.perf_counter()
        recipe = self._build_recipe()
        checkpoint = None if choose_exit else prepare_output(recipe, overwrite=self.overwrite)
        sources = self.recipe["data"].keys() & {"mixture", "pairs"}
        data = load_training_data(recipe.data, seed=recipe.run.seed) if sources else None
        model = PromptEmbedder.from_pretrained(self.source)
        transferred, fit = build_transferred_model(model, self.target, data, seed=recipe.run.seed)
        compiled = list(model.encoder.parts().compiled)
        model = None  # type: ignore[assignment]  # free the prompter and the old reader before training
        gc.collect()
        losses: dict[float, float] = {}
        if choose_exit and data is not None:
            losses = self._choose_exit(transferred, data, recipe.run.seed)
            recipe = self._build_recipe()
            checkpoint = prepare_output(recipe, overwrite=self.overwrite)
        self.report.print(
            f"{fit.shared_strings} tokens are in both vocabularies. On held-out ones the alignment has R² "
            f"{fit.held_out_r2:.2f} (1 is perfect, 0 no better than the mean token) and norms of {fit.norm_ratio:.2f} "
            "times the target's, which rescaling corrects"
        )
        trained = sum(weight.numel() for weight in transferred.encoder.trained_weights())
        if steps and data is not None:
            self._train(transferred, data, recipe, checkpoint)
        transferred.compile_instructions(compiled)
        transferred.save(recipe.run.output)
        return {
            "model": recipe.run.output,
            "from": self.source.name,
            "readers": list(transferred.readers),
            "early_exit_fraction": transferred.early_exit_fraction,
            "exit_losses": {str(depth): round(loss, 4) for depth, loss in losses.items()},
            "fit": dataclasses.asdict(fit),
            "instructions": compiled,
            "steps": steps,
            "trained_bytes": 4 * trained if steps else 0,
            "alignment_file_bytes": (Path(recipe.run.output) / "alignment.safetensors").stat().st_size,
            "seconds": round(time.perf_counter() - started, 1),
        }

    def _build_recipe(self) -> "Recipe":
        from promptembedder.model import model_config, transfer_config
        from promptembedder.storage import from_mapping, to_mapping
        from promptembedder.training import Recipe

        config = transfer_config(model_config(read_manifest(self.source)), self.target)
        return from_mapping(Recipe, {"model": to_mapping(config), **self.recipe})

    def _choose_exit(self, transferred: "PromptEmbedder", data: "TrainingData", seed: int) -> dict[float, float]:
        from promptembedder.training import choose_early_exit_fraction

        fraction, losses = choose_early_exit_fraction(transferred, data, seed=seed)
        listed = ", ".join(f"{loss:.3f} at {tried:g}" for tried, loss in losses.items())
        self.report.print(f"early exit after {fraction:g} of the layers; losses: {listed}")
        self.target = dataclasses.replace(self.target, early_exit_fraction=fraction)
        return losses

    def _train(
        self, transferred: "PromptEmbedder", data: "TrainingData", recipe: "Recipe", checkpoint: Path | None
    ) -> None:
        from promptembedder.cli.progress import training_progress
        from promptembedder.training import train_model

        if checkpoint:
            self.report.print(f"resuming from {checkpoint}")
        train_model(transferred, data, recipe, callbacks=[training_progress()], checkpoint=checkpoint)
        transferred.encoder.compact_alignments_()


def _data_config(data: Path | None, instructions: list[str], model: Path) -> dict[str, Any]:
    """Build the `data` section of the recipe from the options, by default with the instructions of the model."""
    if data is None:
        return {}
    if data.suffix == ".json":
        if instructions:
            raise ConfigError("a mixture contains its instructions. Omit --instruction.")
        return {"mixture": str(data)}
    query, document = (given_or_saved(None, role, model) for role in ("query", "document"))
    return {
        "pairs": str(data),
        "instructions": instructions or [query] * bool(query),
        "document_instructions": [document] * bool(document),
    }


def _parse_fraction(early_exit_fraction: str | None) -> float | None:
    if early_exit_fraction is None or early_exit_fraction == "auto":
        return None
    try:
        return float(early_exit_fraction)
    except ValueError:
        raise ConfigError(
            f"--early-exit-fraction must be a number in (0, 1] or auto, got {early_exit_fraction!r}."
        ) from None


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"transferred: {escape(result['model'])}", show_header=False, title_justify="left")
    table.add_row("runs on", escape(", ".join(result["readers"])))
    table.add_row("early exit fraction", f"{result['early_exit_fraction']:g}")
    if result["instructions"]:
        table.add_row("compiled", escape("\n".join(result["instructions"])))
    table.add_row("steps", str(result["steps"]))
    table.add_row("trained", f"{result['trained_bytes'] / 1e6:.1f} MB")
    table.add_row("alignment file", f"{result['alignment_file_bytes'] / 1e6:.1f} MB")
    table.add_row("seconds", f"{result['seconds']:.0f}")
    return table
