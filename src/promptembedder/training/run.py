"""Training run from recipe to saved model, which resumes from its last checkpoint after a kill."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from promptembedder.backbone import TextCacheStore, shard_layers
from promptembedder.errors import ConfigError
from promptembedder.method import ModelConfig, SoftTokenEncoder, TextEncoder
from promptembedder.model import (
    BaselineEmbedder,
    DualEncoder,
    PromptedSentenceTransformer,
    PromptEmbedder,
    PromptEmbedderCardData,
)
from promptembedder.storage import lock_directory
from promptembedder.training.checkpoints import begin_output, checkpoint_step, find_last_checkpoint
from promptembedder.training.data import InstructionCollator, InstructionVariants, TrainingData, log_data_warnings
from promptembedder.training.distributed import Ranks, init_distributed
from promptembedder.training.instruction_pooling import train_instruction_pooling
from promptembedder.training.losses import InstructionContrastiveLoss, build_contrastive_loss
from promptembedder.training.monitor import DivergenceMonitor, JsonlMetrics
from promptembedder.training.recipe import Recipe
from promptembedder.training.trainer import (
    PromptEmbedderTrainer,
    StateStatistics,
    build_training_arguments,
)

__all__ = [
    "TrainingResult",
    "compute_held_out_loss",
    "fit_whitening_from_data",
    "new_model",
    "train_model",
    "trained_prompts",
]

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
_NUM_WHITENING_TEXTS = 1000  # takes seconds; more texts change little, see docs/results.md


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Summary of a training run.

    Attributes:
        resumed_from: Step of the checkpoint that the run resumed from. 0 for a new run.
        best_step: Step of the saved weights if the best ones are kept. If None, those of the last step.
        train_loss: Mean loss over all steps, including those before a kill.
        metrics: Metrics of the last evaluation. Empty without one.
        query_instructions: First query instruction of each task of pairs, without duplicates.
        prompts: Instructions that the model uses for queries and documents that are given none.
    """

    output: Path
    steps: int
    resumed_from: int
    best_step: int | None
    train_pairs: int
    trained_parameters: int
    train_loss: float
    seconds: float
    metrics: dict[str, float]
    query_instructions: tuple[str, ...]
    prompts: dict[str, str]


def new_model(recipe: Recipe, data: TrainingData, *, device: str | None = None) -> PromptedSentenceTransformer:
    """Build the untrained model, or baseline, that the recipe describes, or load the one that it continues.

    `data` provides the tasks of static soft tokens, the texts that the whitening is fitted on, and the default
    instruction if the recipe sets none: the document instruction that all tasks share.

    Raises:
        BackboneError: If a backbone cannot be loaded.
        DataError: If no row of a task has a negative.
        ConfigError: If the settings contradict each other, or `run.shard_reader` is set in a single process.
        ModelFormatError: If `run.initial_model` cannot be loaded.
    """
    log_data_warnings(data)
    if recipe.run.initial_model is not None:
        return _load_initial(recipe.run.initial_model, recipe, device)
    model = _build_sharded(recipe, data, device) if recipe.run.shard_reader else _build_untrained(recipe, data, device)
    fit_whitening_from_data(model.text_encoder, data, seed=recipe.run.seed)
    return model


def _load_initial(name: str, recipe: Recipe, device: str | None) -> PromptEmbedder:
    """Load the model that training continues. Its whitening is kept."""
    model = PromptEmbedder.from_pretrained(name, device=device)
    if model.encoder.config != recipe.model:
        raise ConfigError(f"the configuration of {name} differs from `model` in the recipe. Use train --from {name}.")
    model.encoder.others = ()  # alignments to further readers do not fit the prompter after training
    return model


def _build_sharded(recipe: Recipe, data: TrainingData, device: str | None) -> PromptedSentenceTransformer:
    """Build an untrained model whose reader is sharded over all processes."""
    if init_distributed().world_size == 1:
        raise ConfigError("run.shard_reader needs several processes. Launch them with torchrun, or set it to false.")
    target = torch.device(device) if device else PartialState().device
    model = _build_untrained(recipe, data, "cpu")
    encoder = model.text_encoder
    assert isinstance(encoder, SoftTokenEncoder)  # ensured by Recipe.__post_init__
    shard_layers(encoder.reader.decoder, target)
    encoder.reading.single_batch = True
    return model.to(target)


def fit_whitening_from_data(encoder: TextEncoder, data: TrainingData, *, seed: int) -> None:
    """Fit the whitening of the encoder's text pooling, if it has one, on training texts."""
    if isinstance(encoder, SoftTokenEncoder) and encoder.text_pooling is not None:
        encoder.fit_whitening(data.sample_texts(_NUM_WHITENING_TEXTS, seed=seed))


@contextmanager
def _attach_text_cache(encoder: TextEncoder, recipe: Recipe) -> Iterator[None]:
    """Attach the text cache that the recipe configures for the duration of the block."""
    if not recipe.text_cache.keeps_any:
        yield
        return
    assert isinstance(encoder, SoftTokenEncoder)  # ensured by Recipe.__post_init__
    encoder.text_cache = TextCacheStore(
        recipe.text_cache, encoder.reader.identity, early_exit_fraction=encoder.config.early_exit_fraction
    )
    try:
        yield
    finally:
        encoder.text_cache.close()
        encoder.text_cache = None


def _build_untrained(recipe: Recipe, data: TrainingData, device: str | None) -> PromptedSentenceTransformer:
    config = recipe.model
    document = trained_prompts(data).get("document")
    if document and config.default_instruction == ModelConfig().default_instruction:
        # texts without an instruction are documents, and no document was trained under the configuration's default
        config = dataclasses.replace(config, default_instruction=document)
    if recipe.baseline is None:
        return PromptEmbedder.create(config=config, device=device, seed=recipe.run.seed)
    baseline = recipe.baseline
    if baseline.kind == "frozen":
        raise ConfigError("baseline.kind 'frozen' has nothing to train. Score it as frozen:mean:BACKBONE.")
    if baseline.kind == "static" and not baseline.instruction_variants:
        sides = [side for task in data.tasks.values() for side in task.instruction_groups]
        baseline = dataclasses.replace(
            baseline, instruction_variants=tuple(dict.fromkeys(side for side in sides if side))
        )
    return BaselineEmbedder.create(config, baseline, device=device, seed=recipe.run.seed)


def train_model(
    model: PromptedSentenceTransformer,
    data: TrainingData,
    recipe: Recipe,
    *,
    evaluator: BaseEvaluator | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> TrainingResult:
    """Train `model` in place and save it to `recipe.run.output`.

    Args:
        evaluator: Called every `recipe.evaluation.every` steps and at the end.
        checkpoint: Checkpoint to resume from. See `prepare_output`.
        on_progress: See `train_instruction_pooling`.

    Raises:
        ConfigError: If another process trains into the output folder.
        TrainingStoppedError: If the run left the bounds of `recipe.monitor`. Saved checkpoints are good.
        SaveError: If the disk is full. Earlier checkpoints are unchanged.
    """
    if recipe.evaluation.keep_best and evaluator is None and data.held_out is None:
        raise ConfigError("evaluation.keep_best needs a validation score. Set data.held_out or evaluation.sts.")
    disable_progress_bar()
    _set_card(model, data)
    _set_prompts(model, data)
    started = time.perf_counter()
    ranks = init_distributed()
    _check_ranks(recipe, ranks)
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(lock_directory(Path(recipe.run.output)))
        with _attach_text_cache(model.text_encoder, recipe):  # raises before any file is deleted
            if ranks.is_first:
                begin_output(recipe, checkpoint)
            ranks.wait()
            if recipe.instruction_pooling.steps and checkpoint is None:
                _train_instruction_pooling(model, data, recipe, on_progress if ranks.is_first else lambda *_: None)
            trainer = _build_trainer(model, data, recipe, evaluator, callbacks)
            trained = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.check_weights()
        metrics = trainer.evaluate() if evaluator is not None or data.held_out is not None else {}
        model.eval()
        if ranks.is_first:  # no model card with a sharded reader: one process alone cannot embed its examples
            model.save(recipe.run.output, create_model_card=not recipe.run.shard_reader)
        ranks.wait()
    return TrainingResult(
        output=Path(recipe.run.output),
        steps=trained.global_step,
        resumed_from=checkpoint_step(checkpoint) if checkpoint else 0,
        best_step=trainer.state.best_global_step if recipe.evaluation.keep_best else None,
        train_pairs=data.pair_count,
        trained_parameters=sum(weight.numel() for weight in model.text_encoder.trained_weights()),
        train_loss=trainer.mean_loss,
        seconds=time.perf_counter() - started,
        metrics={name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))},
        query_instructions=_query_instructions(data),
        prompts={name: text for name, text in model.prompts.items() if text},
    )


def _query_instructions(data: TrainingData) -> tuple[str, ...]:
    """Return the first wording of each task's instruction."""
    first = [task.instructions[0] for task in data.tasks.values() if task.corpus is None and task.instructions]
    return tuple(dict.fromkeys(first))


def _train_instruction_pooling(
    model: PromptedSentenceTransformer,
    data: TrainingData,
    recipe: Recipe,
    on_progress: Callable[[str, int, int], None],
) -> None:
    if not isinstance(model, PromptEmbedder):
        raise ConfigError("instruction_pooling.steps trains a part of a PromptEmbedder. Leave it out for a baseline.")
    train_instruction_pooling(
        model,
        data,
        recipe.instruction_pooling,
        temperature=recipe.loss.temperature,
        attributes_per_step=recipe.data.attributes_per_step,
        seed=recipe.run.seed,
        on_progress=on_progress,
    )


def _check_ranks(recipe: Recipe, ranks: Ranks) -> None:
    if recipe.optim.batch_size < ranks.world_size:
        raise ConfigError(
            f"optim.batch_size is {recipe.optim.batch_size}, for {ranks.world_size} processes together. Raise it to at "
            f"least {ranks.world_size}."
        )
    if recipe.text_cache.keeps_any and ranks.world_size > 1:
        raise ConfigError(
            "text_cache needs a single process, because in the next epoch another process encodes the text. Leave "
            "text_cache out."
        )


def compute_held_out_loss(model: PromptedSentenceTransformer, data: TrainingData, recipe: Recipe) -> float:
    """Compute the mean loss over the tasks' held-out rows, without training.

    Raises:
        ConfigError: If no rows are held out.
    """
    if data.held_out is None:
        raise ConfigError("no rows are held out. Set data.held_out.")
    disable_progress_bar()
    Path(recipe.run.output).mkdir(parents=True, exist_ok=True)
    metrics = _build_trainer(model, data, recipe, None, ()).evaluate()
    losses = [float(value) for name, value in metrics.items() if name.endswith("_loss")]
    return sum(losses) / len(losses)


def _build_trainer(
    model: PromptedSentenceTransformer,
    data: TrainingData,
    recipe: Recipe,
    evaluator: BaseEvaluator | None,
    callbacks: Sequence[TrainerCallback],
) -> PromptEmbedderTrainer:
    ranks = init_distributed()
    torch.manual_seed(recipe.run.seed)  # relaxations with noise use the global generator
    has_evaluation = evaluator is not None or data.held_out is not None
    trainer = PromptEmbedderTrainer(
        model=model,
        args=build_training_arguments(model, recipe, has_evaluation=has_evaluation),
        train_dataset=data.train,
        eval_dataset=data.held_out,
        loss={
            name: InstructionContrastiveLoss(model, temperature=recipe.loss.temperature)
            if task.corpus is not None
            else build_contrastive_loss(model, recipe.loss, in_batch_negatives=task.in_batch_negatives)
            for name, task in data.tasks.items()
        },
        evaluator=evaluator,
        data_collator=InstructionCollator(
            preprocess_fn=model.preprocess,
            variants={
                n: InstructionVariants(task.instructions, task.document_instructions) for n, task in data.tasks.items()
            },
            corpora={name: task.corpus for name, task in data.tasks.items() if task.corpus is not None},
            attributes_per_step=recipe.data.attributes_per_step,
            seed=recipe.run.seed,
            ranks=ranks,
        ),
        callbacks=[JsonlMetrics(Path(recipe.run.output) / METRICS_NAME), *callbacks],
    )
    trainer.check_ranks = recipe.run.check_ranks
    trainer.patience = recipe.evaluation.patience
    trainer.monitor = DivergenceMonitor(
        recipe.monitor,
        check_entropy=recipe.model.relaxation.is_dense,
        last_good=lambda: find_last_checkpoint(Path(recipe.run.output)),
    )
    if isinstance(model.text_encoder, DualEncoder):
        trainer.add_callback(StateStatistics(model.text_encoder))
    trainer.remove_callback(ProgressCallback)  # it prints to stdout, which is reserved for results
    trainer.remove_callback(PrinterCallback)
    return trainer


def _set_card(model: PromptedSentenceTransformer, data: TrainingData) -> None:
    """Set one example and the instructions of the model card.

    Without an example, sentence-transformers draws several and shows a progress bar. Its trainer does not know the
    instructions.
    """
    if isinstance(model.model_card_data, PromptEmbedderCardData):
        for name, task in data.tasks.items():
            model.model_card_data.note_instructions(name, task.instructions, task.document_instructions)
    if not model.model_card_data.widget:
        rows = next(iter(data.tasks.values())).train[:3]
        model.model_card_data.widget = [{"source_sentence": rows["anchor"][0], "sentences": rows["positive"]}]


def trained_prompts(data: TrainingData) -> dict[str, str]:
    """Return the instructions that are the default for queries and documents after training on `data`, by role.

    A role has a default if all tasks of pairs have the same instructions for it, of which the first is the default.
    """
    tasks = [task for task in data.tasks.values() if task.corpus is None]
    roles = {
        "query": {task.instructions for task in tasks},
        "document": {task.document_instructions for task in tasks},
    }
    return {role: next(iter(sides))[0] for role, sides in roles.items() if len(sides) == 1 and all(sides)}


def _set_prompts(model: PromptedSentenceTransformer, data: TrainingData) -> None:
    """Set the model's prompts to the trained instructions, except those that are already set."""
    for role, instruction in trained_prompts(data).items():
        model.prompts[role] = model.prompts.get(role) or instruction
