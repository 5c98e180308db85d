"""A training run from recipe to saved model; killed at any moment, it goes on from its last checkpoint."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from promptembedder.backbone import shard_layers
from promptembedder.errors import ConfigError
from promptembedder.model import BaselineEmbedder, InstructedTransformer, PromptEmbedder, PromptEmbedderCardData
from promptembedder.method import SoftTokenEncoder, TextEncoder
from promptembedder.backbone import TextStateStore
from promptembedder.storage import MANIFEST_NAME, from_mapping, owned_folder, read_yaml, to_mapping, write_text
from promptembedder.training.trainer import check_trackers, training_arguments
from promptembedder.training.checkpoints import checkpoint_step, checkpoints_in, clear_after, last_whole_checkpoint
from promptembedder.training.data import InstructionCollator, Wordings
from promptembedder.training.monitor import Health
from promptembedder.training.losses import contrastive_loss
from promptembedder.training.monitor import JsonlMetrics
from promptembedder.training.distributed import Ranks, joined_ranks
from promptembedder.training.recipe import Recipe
from promptembedder.training.data import TrainingData
from promptembedder.training.trainer import PromptEmbedderTrainer

__all__ = ["TrainingResult", "fit_to_texts", "held_out_loss", "new_model", "prepare_output", "train_model"]

logger = logging.getLogger(__name__)

RECIPE_NAME = "recipe.yaml"
METRICS_NAME = "metrics.jsonl"
_TEXTS_TO_FIT = 1000  # seconds of reading; more change little, see docs/results.md


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run did.

    Attributes:
        resumed_from: Step of the checkpoint that the run went on from; 0 for a new run.
        train_loss: Mean loss of all steps, those before a kill too.
        metrics: The last evaluation; empty without one.
    """

    output: Path
    steps: int
    resumed_from: int
    train_pairs: int
    trained_parameters: int
    train_loss: float
    seconds: float
    metrics: dict[str, float]


def prepare_output(recipe: Recipe, *, overwrite: bool = False) -> Path | None:
    """Check the output folder before anything costs time; returns the checkpoint to go on from, if there is one.

    Writes nothing: a run that fails over its data or backbone leaves no trace.

    Raises:
        ConfigError: The folder holds a finished model, a run of another recipe, or checkpoints none of which is whole,
            and `overwrite` is not set.
        ImportError: A tracker of `run.report_to` is not installed.
    """
    check_trackers(recipe.run.report_to)
    output = Path(recipe.run.output)
    path = output / RECIPE_NAME
    checkpoint = None if overwrite else last_whole_checkpoint(output)
    if overwrite:
        return None
    if (output / MANIFEST_NAME).is_file():
        raise ConfigError(f"{output} already holds a trained model. Choose another output, or overwrite it.")
    if checkpoint is not None and _read_recipe(path) != recipe:
        raise ConfigError(f"{output} holds checkpoints of another recipe. Choose another output, or overwrite it.")
    if checkpoint is None and checkpoints_in(output):
        raise ConfigError(
            f"{output} holds checkpoints, and none that is whole. Choose another output, or overwrite it."
        )
    return checkpoint


def _begin_output(recipe: Recipe, checkpoint: Path | None) -> None:
    """Write the recipe down; a run that starts anew must not be resumed from an older run's checkpoints."""
    output = Path(recipe.run.output)
    output.mkdir(parents=True, exist_ok=True)
    clear_after(output, checkpoint)
    text = yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)
    write_text(output / RECIPE_NAME, text)


def new_model(recipe: Recipe, data: TrainingData, *, device: str | None = None) -> InstructedTransformer:
    """The untrained model, or baseline, that the recipe describes.

    From `data` come the tasks of static soft tokens, and texts that tell what all texts share.

    Raises:
        BackboneError: A backbone cannot be loaded.
        ConfigError: The settings do not fit each other, or there are no other processes to share a reader with.
    """
    model = _sharded(recipe, data, device) if recipe.run.shard_reader else _untrained(recipe, data, device)
    fit_to_texts(model.text_encoder, data, seed=recipe.run.seed)
    return model


def _sharded(recipe: Recipe, data: TrainingData, device: str | None) -> InstructedTransformer:
    """An untrained model whose reader is spread over all processes."""
    if joined_ranks().count == 1:
        raise ConfigError("run.shard_reader needs several processes. Launch them with torchrun, or set it to false.")
    target = torch.device(device) if device else PartialState().device
    model = _untrained(recipe, data, "cpu")
    encoder = model.text_encoder
    assert isinstance(encoder, SoftTokenEncoder)  # the recipe has seen to it
    shard_layers(encoder.reader, target)
    encoder.reading.in_one = True
    return model.to(target)


def fit_to_texts(encoder: TextEncoder, data: TrainingData, *, seed: int) -> None:
    """Let the encoder's text readout, if it has one, take from training texts what all texts share."""
    if isinstance(encoder, SoftTokenEncoder) and encoder.readout is not None:
        encoder.fit_texts(data.sampled_texts(_TEXTS_TO_FIT, seed=seed))


@contextmanager
def _kept_text_states(encoder: TextEncoder, recipe: Recipe) -> Iterator[None]:
    """While this lasts, states of texts are kept as the recipe says."""
    if not recipe.text_states.keeps_any:
        yield
        return
    assert isinstance(encoder, SoftTokenEncoder)  # the recipe has seen to it
    encoder.text_states = TextStateStore(recipe.text_states, encoder.reader.ref, exit_depth=encoder.settings.exit_depth)
    try:
        yield
    finally:
        encoder.text_states.close()
        encoder.text_states = None


def _untrained(recipe: Recipe, data: TrainingData, device: str | None) -> InstructedTransformer:
    if recipe.baseline is None:
        return PromptEmbedder.create(config=recipe.model, device=device, seed=recipe.run.seed)
    baseline = recipe.baseline
    if baseline.kind == "frozen":
        raise ConfigError("baseline.kind 'frozen' has nothing to train. Score it as frozen:mean:BACKBONE.")
    if baseline.kind == "static" and not baseline.wordings:
        sides = [side for task in data.tasks.values() for side in (task.instructions, task.document_instructions)]
        baseline = dataclasses.replace(baseline, wordings=tuple(dict.fromkeys(side for side in sides if side)))
    return BaselineEmbedder.create(recipe.model, baseline, device=device, seed=recipe.run.seed)


def train_model(
    model: InstructedTransformer,
    data: TrainingData,
    recipe: Recipe,
    *,
    evaluator: BaseEvaluator | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Train `model` in place and save it to `recipe.run.output`.

    Args:
        evaluator: Called every `recipe.evaluation.every` steps and at the end.
        checkpoint: Go on from this one; see `prepare_output`.

    Raises:
        ConfigError: Another process trains into the output folder.
        TrainingStoppedError: The run went out of the bounds of `recipe.health`; what is saved is good.
        SaveError: The disk is full; the earlier checkpoints are as they were.
    """
    disable_progress_bar()
    _set_card(model, data)
    started = time.perf_counter()
    ranks = joined_ranks()
    _check_ranks(recipe, ranks)
    with ExitStack() as owning:
        if ranks.is_first:
            owning.enter_context(owned_folder(Path(recipe.run.output)))
        with _kept_text_states(model.text_encoder, recipe):  # what it refuses is refused before anything is deleted
            if ranks.is_first:
                _begin_output(recipe, checkpoint)
            ranks.wait()
            trainer = _trainer(model, data, recipe, evaluator, callbacks)
            trained = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.check_weights()
        metrics = trainer.evaluate() if evaluator is not None or data.held_out is not None else {}
        model.eval()
        if ranks.is_first:  # a card's examples are embedded: not by one process alone, of a reader that all share
            model.save(recipe.run.output, create_model_card=not recipe.run.shard_reader)
        ranks.wait()
    resumed = checkpoint_step(checkpoint) if checkpoint else 0
    return TrainingResult(
        output=Path(recipe.run.output),
        steps=trained.global_step,
        resumed_from=resumed,
        train_pairs=data.pair_count,
        trained_parameters=sum(weight.numel() for weight in model.text_encoder.trained_weights()),
        train_loss=trainer.mean_loss,
        seconds=time.perf_counter() - started,
        metrics={name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))},
    )


def _check_ranks(recipe: Recipe, ranks: Ranks) -> None:
    if recipe.optim.batch_size < ranks.count:
        raise ConfigError(
            f"optim.batch_size is {recipe.optim.batch_size}, for {ranks.count} processes together. Raise it to "
            f"{ranks.count} at least."
        )
    if recipe.text_states.keeps_any and ranks.count > 1:
        raise ConfigError(
            "text_states is for one process: in the next epoch another one gets the text. Leave text_states out."
        )


def held_out_loss(model: InstructedTransformer, data: TrainingData, recipe: Recipe) -> float:
    """Mean loss of the tasks' held-out rows, without training.

    Raises:
        ConfigError: No rows are held out.
    """
    if data.held_out is None:
        raise ConfigError("no rows are held out. Set data.held_out.")
    disable_progress_bar()
    Path(recipe.run.output).mkdir(parents=True, exist_ok=True)
    metrics = _trainer(model, data, recipe, None, ()).evaluate()
    losses = [float(value) for name, value in metrics.items() if name.endswith("_loss")]
    return sum(losses) / len(losses)


def _trainer(
    model: InstructedTransformer,
    data: TrainingData,
    recipe: Recipe,
    evaluator: BaseEvaluator | None,
    callbacks: Sequence[TrainerCallback],
) -> PromptEmbedderTrainer:
    ranks = joined_ranks()
    torch.manual_seed(recipe.run.seed)  # relaxations with noise draw from the global generator
    has_evaluation = evaluator is not None or data.held_out is not None
    trainer = PromptEmbedderTrainer(
        model=model,
        args=training_arguments(model, recipe, has_evaluation=has_evaluation),
        train_dataset=data.train,
        eval_dataset=data.held_out,
        loss={
            name: contrastive_loss(model, recipe.loss, in_batch_negatives=task.in_batch_negatives)
            for name, task in data.tasks.items()
        },
        evaluator=evaluator,
        data_collator=InstructionCollator(
            preprocess_fn=model.preprocess,
            wordings={n: Wordings(task.instructions, task.document_instructions) for n, task in data.tasks.items()},
            seed=recipe.run.seed,
            ranks=ranks,
        ),
        callbacks=[JsonlMetrics(Path(recipe.run.output) / METRICS_NAME), *callbacks],
    )
    trainer.checks_ranks = recipe.run.check_ranks
    trainer.health = Health(
        recipe.health,
        soft_max=recipe.model.relaxation.kind == "softmax",
        last_good=lambda: last_whole_checkpoint(Path(recipe.run.output)),
    )
    trainer.remove_callback(ProgressCallback)  # it writes to stdout, which is for results
    trainer.remove_callback(PrinterCallback)
    return trainer


def _set_card(model: InstructedTransformer, data: TrainingData) -> None:
    """One example for the model card; without one, sentence-transformers draws some, with a progress bar of its own.

    And the instructions, which its trainer does not hear of.
    """
    if isinstance(model.model_card_data, PromptEmbedderCardData):
        for name, task in data.tasks.items():
            model.model_card_data.note_instructions(name, task.instructions, task.document_instructions)
    if not model.model_card_data.widget:
        rows = next(iter(data.tasks.values())).train[:3]
        model.model_card_data.widget = [{"source_sentence": rows["anchor"][0], "sentences": rows["positive"]}]


def _read_recipe(path: Path) -> Recipe | None:
    """The recipe that was written down; settings that are newer than it have their defaults."""
    try:
        return from_mapping(Recipe, read_yaml(path))
    except ConfigError:
        return None
