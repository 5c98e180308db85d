"""A recipe in the words of sentence-transformers' trainer."""

import importlib.util
import re

import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers, MultiDatasetBatchSamplers

from promptembedder.extras import require
from promptembedder.models import InstructedTransformer, trained_state
from promptembedder.training.recipe import Recipe

__all__ = ["check_trackers", "training_arguments"]


def training_arguments(
    model: InstructedTransformer, recipe: Recipe, *, has_evaluation: bool
) -> SentenceTransformerTrainingArguments:
    """The trainer's arguments for this recipe."""
    run, optim = recipe.run, recipe.optim
    trained = list(trained_state(model.text_encoder))
    patterns = {
        r"\.(alignment|deep|head)\.": optim.alignment_learning_rate,
        r"\.(anchor_delta|log_gate|vectors)$": optim.anchor_learning_rate,
    }
    # sentence-transformers refuses a pattern that fits nothing
    rates = {pattern: rate for pattern, rate in patterns.items() if any(re.search(pattern, f".{n}") for n in trained)}
    every = recipe.evaluation.every
    whole = (recipe.model.prompter.tuning, recipe.baseline.kind if recipe.baseline else "")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=run.output,
        max_steps=optim.steps,
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.batch_size,
        learning_rate=optim.learning_rate,
        learning_rate_mapping=rates,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type="linear" if optim.schedule == "linear" else "constant_with_warmup",
        max_grad_norm=optim.max_grad_norm,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a duplicate would be its own row's negative
        multi_dataset_batch_sampler=MultiDatasetBatchSamplers.PROPORTIONAL,
        eval_strategy="steps" if has_evaluation and every else "no",
        eval_steps=every or None,
        save_strategy="steps",
        save_steps=run.save_every,
        save_total_limit=run.keep_checkpoints,
        logging_steps=run.log_every,
        logging_nan_inf_filter=False,  # a NaN loss must be seen
        seed=run.seed,
        data_seed=run.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=list(run.report_to) or "none",
        disable_tqdm=True,
        use_cpu=PartialState().device.type == "cpu",  # as `joined_ranks` found it
        # all weights have a gradient in every step; where a whole LLM is trained, its head may have none
        ddp_find_unused_parameters="full" in whole,
        dataloader_drop_last=True,  # what sentence-transformers demands of several processes, for its own samplers
    )
    arguments.dataloader_drop_last = False  # ours share out a batch of any size
    return arguments


def check_trackers(names: tuple[str, ...]) -> None:
    """Whether these can be reported to.

    Raises:
        ImportError: One is not installed; the message holds the install line.
    """
    for name in names:
        if name == "tensorboard":
            require("tensorboard", extra="track")
        elif importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed. Run: pip install {name}")
