"""Moving a trained model to another reader: the alignment alone is trained, the prompter is not even in memory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from promptembedder.data import Pair
from promptembedder.errors import ConfigError
from promptembedder.model import Move, PromptEmbedder, moved_encoder
from promptembedder.method import AlignmentFit
from promptembedder.training.recipe import OptimConfig, Recipe, RunConfig
from promptembedder.training.run import fit_to_texts, held_out_loss, train_model
from promptembedder.training.data import TaskData, TrainingData, task_data

__all__ = ["chosen_exit_depth", "move_embedder", "moved_model"]

_TEXTS_TO_CARRY = 200  # some thousand places where both readers end a token
_DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # tried as exits
_MOST_LOSS = 1.02  # of an exit, times that of all layers
_ROWS = 96  # of each task, for the loss that chooses among them


def moved_model(
    model: PromptEmbedder,
    move: Move,
    data: TrainingData | None = None,
    *,
    also: Sequence[str] = (),
    cache_folder: Path | None = None,
    seed: int = 0,
) -> tuple[PromptEmbedder, AlignmentFit]:
    """`model` on another reader before any training, and how well the spaces fit.

    Its prompter is put away: only its trained weights are kept, and what it says to the instructions of `data`.

    Args:
        data: What it will be trained on; its texts tell what all texts share, and how states of the one reader become
            states of the other. None for a model that stays as it is.
        also: Further instructions that it will be asked for while its prompter is away.

    Raises:
        ConfigError: The model has no prompter in memory, or its soft tokens depend on the texts.
        BackboneError: The reader cannot be loaded, or shares too few strings.
    """
    instructions = [*also, *(() if data is None else data.instructions)]
    texts = [] if data is None else data.sampled_texts(_TEXTS_TO_CARRY, seed=seed)
    moved = moved_encoder(
        model.encoder, move, instructions=instructions, texts=texts, cache_folder=cache_folder, seed=seed
    )
    embedder = PromptEmbedder(modules=[moved.encoder], device=str(model.device))
    embedder.prompts, embedder.default_prompt_name = dict(model.prompts), model.default_prompt_name
    if data is not None:
        fit_to_texts(moved.encoder, data, seed=seed)
    return embedder.eval(), moved.fit


def move_embedder(
    model: PromptEmbedder,
    move: Move,
    data: TrainingData | Sequence[Pair] | None = None,
    *,
    steps: int = 200,
    instructions: Sequence[str] = (),
    optim: OptimConfig | None = None,
    seed: int = 0,
) -> PromptEmbedder:
    """`model` on another reader, its alignment trained; both models share the prompter, which does not change.

    Args:
        data: Tasks, or pairs of one task that are read under `instructions`.
        steps: 0 leaves it at its closed form, for which no data is needed.
        optim: Rates, batch size and the like; its own `steps` are not used.

    Raises:
        ConfigError: Steps without data, or a model that cannot be moved.
        BackboneError: The reader cannot be loaded, or shares too few strings.
    """
    if steps and data is None:
        raise ConfigError(f"{steps} steps need data. Give pairs, or steps=0 for the closed form alone.")
    if data is not None and not isinstance(data, TrainingData):
        wordings = list(instructions) or [model.encoder.settings.default_instruction]
        data = TrainingData(task_data(data, "pairs", instructions=wordings, seed=seed))
    moved, _ = moved_model(model, move, data, seed=seed)
    if steps and data is not None:
        with TemporaryDirectory() as scratch:
            recipe = Recipe(
                model=moved.encoder.settings,
                optim=dataclasses.replace(optim or OptimConfig(), steps=steps),
                run=RunConfig(output=scratch, seed=seed, save_every=steps),
            )
            train_model(moved, data, recipe)
        moved.encoder.settle()
    moved.encoder.take_back(model.encoder.prompter)
    return moved.eval()


def chosen_exit_depth(model: PromptEmbedder, data: TrainingData, *, seed: int = 0) -> tuple[float, dict[float, float]]:
    """At which depth texts can leave the reader: the least whose loss is no more than 2 % above that of all layers.

    The model has that depth from then on. Depths that it cannot have are not tried. The loss is that of some held-out
    rows of each task, or of training rows where none are held out.

    Returns:
        The depth, and the losses of all depths tried.
    """
    losses = {}
    for depth in _DEPTHS:
        try:
            model.exit_depth = depth
        except ConfigError:  # the text's own states are taken deeper
            continue
        losses[depth] = _loss(model, data, seed)
    model.exit_depth = min(depth for depth, loss in losses.items() if loss <= _MOST_LOSS * losses[1.0])
    return model.exit_depth, losses


def _loss(model: PromptEmbedder, data: TrainingData, seed: int) -> float:
    """Mean contrastive loss over some rows of each task."""

    def some(task: TaskData) -> TaskData:
        rows = task.train if task.held_out is None else task.held_out
        return dataclasses.replace(task, held_out=rows.select(range(min(len(rows), _ROWS))))

    with TemporaryDirectory() as scratch:
        recipe = Recipe(model=model.encoder.settings, run=RunConfig(output=scratch, seed=seed))
        return held_out_loss(model, TrainingData({name: some(task) for name, task in data.tasks.items()}), recipe)
