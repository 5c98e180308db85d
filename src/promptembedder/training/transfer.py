"""Transfer of a trained model to another reader: only the alignment is trained, and the prompter is offloaded."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from promptembedder.backbone import BackboneConfig
from promptembedder.data import Pair
from promptembedder.errors import ConfigError, DataError, short_repr
from promptembedder.method import AlignmentFit
from promptembedder.model import PromptEmbedder, TransferConfig, transfer_encoder
from promptembedder.training.data import TaskData, TrainingData, build_task_data, log_data_warnings
from promptembedder.training.recipe import OptimConfig, Recipe, RunConfig
from promptembedder.training.run import compute_held_out_loss, fit_whitening_from_data, train_model

__all__ = ["build_transferred_model", "choose_early_exit_fraction", "transfer_to"]

_NUM_FIT_TEXTS = 200  # enough for some thousand positions where the tokens of both readers end
_CANDIDATE_FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
_MAX_LOSS_RATIO = 1.02  # loss with early exit over loss with all layers
_MAX_ROWS = 96  # rows of each task on which candidate fractions are compared


def build_transferred_model(
    model: PromptEmbedder,
    target: TransferConfig,
    data: TrainingData | None = None,
    *,
    also: Sequence[str] = (),
    cache_folder: Path | None = None,
    seed: int = 0,
) -> tuple[PromptEmbedder, AlignmentFit]:
    """Build `model` on another reader before any training, and measure how well the embedding spaces fit.

    The prompter of the result is offloaded: only its trained weights and its outputs for the instructions of `data`
    and the compiled instructions of `model` are kept.

    Args:
        data: Training data. Its texts fit the whitening and the map from hidden states of the old reader to hidden
            states of the new reader. If None, both are left as they are.
        also: Further instructions whose prompter outputs are cached.

    Raises:
        ConfigError: If the model has no prompter in memory, or its soft tokens depend on the texts.
        DataError: If no row of a task has a negative.
        BackboneError: If the reader cannot be loaded, or its vocabulary shares too few strings with the old one.
    """
    if data is not None:
        log_data_warnings(data)
    instructions = [*also, *(() if data is None else data.instructions), *model.encoder.parts().compiled]
    texts = [] if data is None else data.sample_texts(_NUM_FIT_TEXTS, seed=seed)
    transferred = transfer_encoder(
        model.encoder, target, instructions=instructions, texts=texts, cache_folder=cache_folder, seed=seed
    )
    embedder = PromptEmbedder(modules=[transferred.encoder], device=str(model.device))
    embedder.prompts, embedder.default_prompt_name = dict(model.prompts), model.default_prompt_name
    if data is not None:
        fit_whitening_from_data(transferred.encoder, data, seed=seed)
    return embedder.eval(), transferred.fit


def transfer_to(
    model: PromptEmbedder,
    reader: str | BackboneConfig,
    data: TrainingData | Sequence[Pair | tuple[str, ...]] | None = None,
    *,
    steps: int = 200,
    instructions: Sequence[str] = (),
    optim: OptimConfig | None = None,
    seed: int = 0,
) -> PromptEmbedder:
    """Transfer `model` to another reader and train its alignment there.

    Both models share the prompter, which does not change. The saved result opens on either reader. Instructions that
    are compiled in `model` are compiled for the new reader, too.

    Args:
        reader: Backbone string or configuration of the new reader.
        data: Tasks, or pairs of one task, which may be tuples of query, text and optionally negative.
        steps: Training steps. 0 keeps the closed-form alignment, which needs no data.
        instructions: Query instructions if `data` is pairs. If empty, the model's default for queries.
        optim: Learning rates, batch size and schedule. Its field `steps` is ignored.

    Raises:
        ConfigError: If steps are given without data, or the model cannot be transferred.
        DataError: If a pair is neither a `Pair` nor a tuple of two or three strings.
        BackboneError: If the reader cannot be loaded, or its vocabulary shares too few strings with the old one.
    """
    if steps and data is None:
        raise ConfigError(f"{steps} steps need data. Give pairs, or steps=0 for the closed form alone.")
    if data is not None and not isinstance(data, TrainingData):
        prompts = {role: [text] if text else [] for role, text in model.prompts.items()}
        data = TrainingData(
            build_task_data(
                [_to_pair(row) for row in data],
                "pairs",
                instructions=list(instructions) or prompts.get("query", ()),
                document_instructions=prompts.get("document", ()),
                seed=seed,
            )
        )
    target = TransferConfig(reader=BackboneConfig(source=reader) if isinstance(reader, str) else reader)
    transferred, _ = build_transferred_model(model, target, data, seed=seed)
    if steps and data is not None:
        with TemporaryDirectory() as scratch:
            recipe = Recipe(
                model=transferred.encoder.config,
                optim=dataclasses.replace(optim or OptimConfig(), steps=steps),
                run=RunConfig(output=scratch, seed=seed, save_every=steps),
            )
            train_model(transferred, data, recipe)
        transferred.encoder.compact_alignments_()
    transferred.encoder.attach_prompter(model.encoder.prompter)
    transferred.compile_instructions(list(model.encoder.parts().compiled))
    return transferred.eval()


def _to_pair(row: Any) -> Pair:
    if isinstance(row, Pair):
        return row
    if not isinstance(row, tuple | list) or len(row) not in (2, 3) or not all(isinstance(text, str) for text in row):
        raise DataError(
            f"a pair must be a Pair or (query, text), got {short_repr(row)}. Give two strings for each pair."
        )
    return Pair(*row)


def choose_early_exit_fraction(
    model: PromptEmbedder, data: TrainingData, *, seed: int = 0
) -> tuple[float, dict[float, float]]:
    """Set the smallest early-exit fraction whose loss is at most 2 % above the loss with all layers.

    Fractions that the configuration does not allow are skipped. The loss is computed on some held-out rows of each
    task, or on training rows where none are held out.

    Returns:
        The chosen fraction, and the loss by fraction.
    """
    losses = {}
    for fraction in _CANDIDATE_FRACTIONS:
        try:
            model.early_exit_fraction = fraction
        except ConfigError:  # text pooling takes hidden states of a deeper layer
            continue
        losses[fraction] = _compute_loss(model, data, seed)
    allowed = [fraction for fraction, loss in losses.items() if loss <= _MAX_LOSS_RATIO * losses[1.0]]
    model.early_exit_fraction = min(allowed)
    return model.early_exit_fraction, losses


def _compute_loss(model: PromptEmbedder, data: TrainingData, seed: int) -> float:
    """Compute the mean contrastive loss over some rows of each task."""

    def truncate(task: TaskData) -> TaskData:
        rows = task.train if task.held_out is None else task.held_out
        return dataclasses.replace(task, held_out=rows.select(range(min(len(rows), _MAX_ROWS))))

    with TemporaryDirectory() as scratch:
        recipe = Recipe(model=model.encoder.config, run=RunConfig(output=scratch, seed=seed))
        rows = TrainingData({name: truncate(task) for name, task in data.tasks.items()})
        return compute_held_out_loss(model, rows, recipe)
