"""Subclass of sentence-transformers' trainer for a frozen reader with soft tokens, and its arguments."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.sampler import BatchSamplers, MultiDatasetBatchSamplers
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from promptembedder.method import SoftTokenEncoder, TextEncoder
from promptembedder.method.text_encoder import trained_state
from promptembedder.model import DualEncoder, PromptedSentenceTransformer
from promptembedder.training.checkpoints import (
    get_rng_states,
    keep_newest,
    read_training_state,
    set_rng_states,
    write_checkpoint,
    write_training_state,
)
from promptembedder.training.distributed import CommBytes, Ranks, all_gather_with_grad, assert_ranks_equal
from promptembedder.training.monitor import DivergenceMonitor
from promptembedder.training.recipe import Recipe
from promptembedder.types import Tensor

VALIDATION_SCORE = "eval_validation_score"

__all__ = ["PromptEmbedderTrainer", "StateStatistics", "build_training_arguments"]

_STATISTICS_EVERY = 8  # steps


def build_training_arguments(
    model: PromptedSentenceTransformer, recipe: Recipe, *, has_evaluation: bool
) -> SentenceTransformerTrainingArguments:
    """Build the trainer's arguments from a recipe."""
    run, optim = recipe.run, recipe.optim
    trained = list(trained_state(model.text_encoder))
    patterns = {
        r"\.(alignment|deep|query|instructed)\.": optim.alignment_learning_rate,
        r"\.(soft_prompt_delta|log_scale|vectors)$": optim.soft_prompt_learning_rate,
    }
    # sentence-transformers raises on a pattern without a match
    rates = {pattern: rate for pattern, rate in patterns.items() if any(re.search(pattern, f".{n}") for n in trained)}
    every = recipe.evaluation.every
    tunings = (recipe.model.prompter.tuning, recipe.baseline.kind if recipe.baseline else "")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=run.output,
        max_steps=optim.steps if optim.epochs is None else -1,
        num_train_epochs=optim.epochs or 1.0,  # ignored if max_steps is set
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.batch_size,
        learning_rate=optim.learning_rate,
        learning_rate_mapping=rates,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type="linear" if optim.schedule == "linear" else "constant_with_warmup",
        max_grad_norm=optim.max_grad_norm,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a duplicate would be a false negative
        multi_dataset_batch_sampler=MultiDatasetBatchSamplers.PROPORTIONAL,
        eval_strategy="steps" if has_evaluation and every else "no",
        eval_steps=every or None,
        save_strategy="steps",
        save_steps=every if recipe.evaluation.keep_best else run.save_every,
        load_best_model_at_end=recipe.evaluation.keep_best,
        metric_for_best_model=VALIDATION_SCORE if recipe.evaluation.keep_best else None,
        greater_is_better=True if recipe.evaluation.keep_best else None,
        save_total_limit=run.keep_checkpoints,
        logging_steps=run.log_every,
        logging_nan_inf_filter=False,  # a NaN loss must be visible
        seed=run.seed,
        data_seed=run.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=list(run.report_to) or "none",
        disable_tqdm=True,
        use_cpu=PartialState().device.type == "cpu",  # consistent with `init_distributed`
        # all weights have a gradient in every step, except the LM head of a fully trained LLM
        ddp_find_unused_parameters="full" in tunings,
        dataloader_drop_last=True,  # sentence-transformers requires it of several processes, for its samplers
    )
    arguments.dataloader_drop_last = False  # our collator splits batches of any size
    return arguments


class StateStatistics(TrainerCallback):
    """Callback that keeps the statistics of the prompter's states those of its present weights.

    With the statistics of the start, training moves all states the same way, along dimensions of small variance most of
    all: the tokens become a static prompt.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        """Set the encoder, whose states may also be passed on without statistics."""
        self._encoder = encoder

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Compute the statistics again every few steps, and in each step whose weights are saved."""
        if state.global_step % _STATISTICS_EVERY == 0 or control.should_save or control.should_training_stop:
            self._encoder.update_state_statistics()


# running sums of the parent, since its last log line and in total
_LOSSES = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")


class PromptEmbedderTrainer(SentenceTransformerTrainer):
    """Trainer that embeds all columns of a step in one pass, logs soft-token diagnostics and saves trained weights.

    Several processes (DDP) train on one joint batch: each process embeds its share of the rows and computes the loss of
    all rows. Frozen weights are neither broadcast nor reduced.

    Attributes:
        check_ranks: Compare soft tokens and trained weights between the processes in every step.
        monitor: Divergence checks. If None, the run is never stopped.
        patience: Number of successive evaluations without a better score that stop the run. If None, none do.
    """

    check_ranks = False
    monitor: DivergenceMonitor | None = None
    patience: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of sentence-transformers' trainer."""
        super().__init__(*args, **kwargs)
        self.ranks = Ranks(self.args.process_index, self.args.world_size)
        self.traffic = CommBytes()
        self._embedding_model: Any = None
        self._resumed: dict[str, Any] | None = None
        self._losses_missing = True

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        """Choose the optimizer's parameter groups independently of the names of the tasks.

        The parent makes each task's name the name of a torch submodule, which fails for `train`, `to` or a name with a
        dot, and matches weight decay and learning rates against the parameter names that result.
        """
        loss: Any = getattr(self, "loss")  # noqa: B009 - set by the parent, untyped
        if isinstance(loss, dict):
            self.loss = {f"task_{index}": task_loss for index, task_loss in enumerate(loss.values())}
        try:
            return super().get_optimizer_cls_and_kwargs(args, model)
        finally:
            self.loss = loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Compute the parent's training step, then check loss and soft tokens.

        Raises:
            TrainingStoppedError: If the loss or the soft tokens are out of bounds. The weights are those before the
                step.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.monitor is not None:
            step = self.state.global_step + 1
            self.monitor.check_loss(float(loss), step=step, task=inputs.get("dataset_name"))
            self.monitor.check_soft_tokens(self._encoder().diagnostics, step=step)
        return loss

    def check_weights(self) -> None:
        """Check that the trained weights are finite before they are saved.

        Raises:
            TrainingStoppedError: If a trained weight is not finite.
        """
        if self.monitor is not None:
            self.monitor.check_weights(trained_state(self._encoder()).items(), step=self.state.global_step)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Compute the loss of a batch, which `collect_features` embeds."""
        loss = self.loss[inputs["dataset_name"]] if isinstance(self.loss, dict) else self.loss
        # losses with gradient caching split the columns and embed the chunks themselves
        self._embedding_model = None if isinstance(loss, CachedLossMixin) else model
        if self.model.training:
            self.traffic.begin_step(model)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Collect the columns' features and, where possible, embed all columns in one pass before the loss runs."""
        features, labels = super().collect_features(inputs)
        distributed = self.ranks.world_size > 1
        if self._embedding_model is None or not (distributed or isinstance(self._encoder(), SoftTokenEncoder)):
            return features, labels
        features = self._embedding_model({"columns": features})["columns"]
        if distributed and self.check_ranks and self.model.training:
            self._check_ranks(features)
        if "all_gather_with_grad" in inputs:
            features = self._gather(features, inputs["all_gather_with_grad"])
        return features, labels

    def override_model_in_loss(self, loss: nn.Module, model: Any) -> nn.Module:
        """Keep the unwrapped model in losses that get computed embeddings: DDP allows one forward pass per step."""
        if isinstance(model, DistributedDataParallel) and not isinstance(loss, CachedLossMixin):
            return loss
        return super().override_model_in_loss(loss, model)

    @property
    def mean_loss(self) -> float:
        """Mean loss over all steps of the run, including those before a resume, which the parent leaves out."""
        return float(self._total_loss_scalar) / max(self.state.global_step, 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log each training loss together with soft-token diagnostics and the communicated bytes of the last step."""
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self.mean_loss}
        if "loss" in logs:
            logs = {**logs, **{name: round(value, 4) for name, value in self._encoder().diagnostics.items()}}
            if self.ranks.world_size > 1:
                logs["communicated_bytes"] = self.traffic.step_bytes
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Run the parent's evaluation and add the validation score in training if the best checkpoint is kept.

        The parent calls this method again for each held-out data set, with a prefix that contains its name.
        """
        metrics: dict[str, float] = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.args.load_best_model_at_end and self.is_in_train and metric_key_prefix == "eval":
            if self.evaluator is None:
                losses = [loss for name, loss in metrics.items() if name.endswith("_loss")]
                score = -sum(losses) / len(losses)
            else:
                score = metrics[f"eval_{self.evaluator.primary_metric}"]
            metrics[VALIDATION_SCORE] = score
            self.log({VALIDATION_SCORE: score})
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # not EarlyStoppingCallback: it has the metrics of one held-out data set at a time, and a resumed run forgets
        # its counter
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if self.patience is not None and self.state.best_global_step is not None:
            waited = (self.state.global_step - self.state.best_global_step) / self.args.eval_steps
            self.control.should_training_stop |= waited >= self.patience
        return is_best

    def _load_best_model(self) -> None:
        self.ranks.wait()  # for the first process, which writes checkpoints
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the parent's loop with one loss per batch: every process computes the loss of the joint batch."""
        self.gather_function: Any = lambda losses: self.accelerator.gather_for_metrics(losses)[: len(losses)]
        return super().evaluation_loop(*args, **kwargs)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return the number of rows of a joint batch."""
        return int(super().get_total_train_batch_size(args) / self.ranks.world_size)

    def _gather(self, columns: list[dict[str, Any]], rows: int) -> list[dict[str, Tensor]]:
        """Gather the embeddings of all processes for each column, in one all_gather."""
        steps = "step_embeddings" in columns[0]
        name = "step_embeddings" if steps else "sentence_embedding"
        local = torch.stack([column[name] for column in columns], dim=1)  # [local columns ...]
        joint = all_gather_with_grad(local, rows, self.ranks)
        self.traffic.add([joint])
        if steps:
            return [{"sentence_embedding": one[:, -1], "step_embeddings": one} for one in joint.unbind(1)]
        return [{"sentence_embedding": one} for one in joint.unbind(1)]

    def _check_ranks(self, columns: list[dict[str, Any]]) -> None:
        encoder = self._encoder()
        named: dict[str, list[Any]] = {"trained weights": encoder.trained_weights()}
        if isinstance(encoder, SoftTokenEncoder) and not encoder.config.prompter.depends_on_text:
            named["soft tokens"] = [encoder.soft_tokens([column["instruction"] for column in columns])]
        assert_ranks_equal(named, self.ranks, step=self.state.global_step + 1)

    def _build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a loader of joint batches on every process, of which the collator takes the local share.

        By default accelerate splits or distributes batches: it drops incomplete ones, does not pass a new epoch to the
        sampler, and does not show a process all rows that the instruction variant is drawn from.
        """
        loader = super()._build_dataloader(*args, **kwargs)
        if self.ranks.world_size > 1:
            loader = prepare_data_loader(loader, num_processes=1, process_index=0)
            loader._is_accelerate_prepared = True  # accelerate checks this flag
        return loader

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: DataLoader | None = None) -> nn.Module:
        wrapped = super()._wrap_model(model, training, dataloader)
        if training and wrapped is self.model:  # DDP wraps it next, and would broadcast the reader first
            trained = trained_state(wrapped)
            frozen = [name for name, _ in wrapped.named_parameters() if name not in trained]
            frozen += [name for name, _ in wrapped.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, frozen)
        return wrapped

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        # without the parent's pickled arguments: the recipe contains the same settings
        self.model.save(folder, create_model_card=False)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # before clipping and before the optimizer step
        if self.monitor is not None:
            self.monitor.check_gradient(float(norm), step=self.state.global_step + 1)
        return norm

    # -- checkpoints: atomic and without pickle, which the parent uses for everything but the weights ----------------

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.check_weights()
        self.store_flos()
        if not self.args.should_save:
            return
        output = Path(str(self.args.output_dir))
        best = None
        if self.args.load_best_model_at_end and self.state.best_global_step:
            best = output / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best)
        with write_checkpoint(output, self.state.global_step) as folder:
            self._save(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            write_training_state(
                folder,
                {
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.lr_scheduler.state_dict(),
                    "generators": get_rng_states(),
                    "losses": {name: getattr(self, name) for name in _LOSSES},
                },
            )
        if self.args.save_total_limit:
            keep_newest(output, self.args.save_total_limit, best=best)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        # in place, because the parent would load a second copy of the frozen backbones
        self._encoder().restore(Path(checkpoint_path))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self._resumed = read_training_state(Path(checkpoint))
        self.optimizer.load_state_dict(self._resumed["optimizer"])
        self.lr_scheduler.load_state_dict(self._resumed["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: there is no gradient scaler, because no weight is trained in float16."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            set_rng_states(self._resumed["generators"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._restore_losses()
        if self.state.global_step < self.state.max_steps:  # the parent would train one step too many
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._restore_losses()  # a checkpoint at the end of the last epoch leaves no epoch to run
        return super()._finalize_training(*args, **kwargs)

    def _restore_losses(self) -> None:
        if self._resumed is None or not self._losses_missing:
            return
        self._losses_missing = False
        for name, value in self._resumed["losses"].items():  # the parent resets them after it has loaded the rest
            if name in _LOSSES:
                setattr(self, name, value.to(self.args.device) if isinstance(value, Tensor) else value)

    def _encoder(self) -> TextEncoder:
        model = self.accelerator.unwrap_model(self.model) if hasattr(self, "accelerator") else self.model
        assert isinstance(model, PromptedSentenceTransformer)
        return model.text_encoder
