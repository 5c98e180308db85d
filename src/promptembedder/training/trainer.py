"""The sentence-transformers trainer for a frozen reader with soft tokens, and its arguments."""

import importlib.util
import re
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers, MultiDatasetBatchSamplers
from promptembedder.extras import require
from promptembedder.model import InstructedTransformer
from promptembedder.method import text_encoder as trained_state
from promptembedder.training.recipe import Recipe
import os
from pathlib import Path
from typing import Any
from accelerate.data_loader import prepare_data_loader
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME
from promptembedder.method import SoftTokenEncoder, TextEncoder, text_encoder as trained_state
from promptembedder.types import Tensor
from promptembedder.training.checkpoints import keep_newest, new_checkpoint, read_training_state, write_training_state
from promptembedder.training.checkpoints import generator_states, restore_generators
from promptembedder.training.monitor import Health
from promptembedder.training.distributed import check_alike
from promptembedder.training.distributed import Ranks, joint_rows
from promptembedder.training.distributed import Traffic

__all__ = ['PromptEmbedderTrainer', 'check_trackers', 'training_arguments']

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


# what the parent adds up between two lines of its log, and in all
_LOSSES = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")


class PromptEmbedderTrainer(SentenceTransformerTrainer):
    """Embeds all columns of a step in one pass, logs the soft tokens' health, checkpoints trained weights only.

    Several processes (DDP) train on one joint batch: each embeds its share of the rows, all of them compute the loss
    of all rows. What is frozen is neither sent nor reduced.

    Attributes:
        checks_ranks: Compare soft tokens and trained weights between the processes in every step.
        health: Stops the run where something is out of all bounds; None never does.
    """

    checks_ranks = False
    health: Health | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """All arguments are those of sentence-transformers' trainer."""
        super().__init__(*args, **kwargs)
        self.ranks = Ranks(self.args.process_index, self.args.world_size)
        self.traffic = Traffic()
        self._embeds_with: Any = None
        self._resumed: dict[str, Any] | None = None
        self._losses_missing = True

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The parent's, stopped where the loss or the soft tokens are out of bounds.

        Raises:
            TrainingStoppedError: They are; the weights are those before the step.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.health is not None:
            step = self.state.global_step + 1
            self.health.check_loss(float(loss), step=step, task=inputs.get("dataset_name"))
            self.health.check_soft_tokens(self._encoder().diagnostics, step=step)
        return loss

    def check_weights(self) -> None:
        """Refuse to save what is not finite.

        Raises:
            TrainingStoppedError: A trained weight is not.
        """
        if self.health is not None:
            self.health.check_weights(trained_state(self._encoder()).items(), step=self.state.global_step)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Loss of a batch; see `collect_features` for how it is embedded."""
        loss = self.loss[inputs["dataset_name"]] if isinstance(self.loss, dict) else self.loss
        # losses that cache gradients split the columns and embed the pieces themselves
        self._embeds_with = None if isinstance(loss, CachedLossMixin) else model
        if self.model.training:
            self.traffic.begin_step(model)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Tensor | None]:
        """The columns' features, embedded in one pass where possible: the loss then finds their embeddings ready."""
        features, labels = super().collect_features(inputs)
        several = self.ranks.count > 1
        if self._embeds_with is None or not (several or isinstance(self._encoder(), SoftTokenEncoder)):
            return features, labels
        features = self._embeds_with({"columns": features})["columns"]
        if several and self.checks_ranks and self.model.training:
            self._check_ranks(features)
        if "joint_rows" in inputs:
            features = self._joint(features, inputs["joint_rows"])
        return features, labels

    def override_model_in_loss(self, loss: nn.Module, model: Any) -> nn.Module:
        """A loss that finds its embeddings ready keeps the bare model: DDP must see one forward pass a step."""
        if isinstance(model, DistributedDataParallel) and not isinstance(loss, CachedLossMixin):
            return loss
        return super().override_model_in_loss(loss, model)

    @property
    def mean_loss(self) -> float:
        """Of all steps of the run, those before a kill too, which the parent divides by the steps since then."""
        return float(self._total_loss_scalar) / max(self.state.global_step, 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the soft tokens' diagnostics, and the bytes of the last step, beside each training loss."""
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self.mean_loss}
        if "loss" in logs:
            logs = {**logs, **{name: round(value, 4) for name, value in self._encoder().diagnostics.items()}}
            if self.ranks.count > 1:
                logs["communicated_bytes"] = self.traffic.step_bytes
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, with one loss a batch: that of the joint batch, which every process has."""
        self.gather_function: Any = lambda losses: self.accelerator.gather_for_metrics(losses)[: len(losses)]
        return super().evaluation_loop(*args, **kwargs)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of a joint batch."""
        return int(super().get_total_train_batch_size(args) / self.ranks.count)

    def _joint(self, columns: list[dict[str, Any]], rows: int) -> list[dict[str, Tensor]]:
        """The embeddings of all processes, for each column, from one exchange."""
        steps = "step_embeddings" in columns[0]
        name = "step_embeddings" if steps else "sentence_embedding"
        together = torch.stack([column[name] for column in columns], dim=1)  # [own columns ...]
        joint = joint_rows(together, rows, self.ranks)
        self.traffic.add([joint])
        if steps:
            return [{"sentence_embedding": one[:, -1], "step_embeddings": one} for one in joint.unbind(1)]
        return [{"sentence_embedding": one} for one in joint.unbind(1)]

    def _check_ranks(self, columns: list[dict[str, Any]]) -> None:
        encoder = self._encoder()
        named: dict[str, list[Any]] = {"trained weights": encoder.trained_weights()}
        if isinstance(encoder, SoftTokenEncoder) and encoder.settings.conditioning == "instruction":
            named["soft tokens"] = [encoder.soft_tokens([column["instruction"] for column in columns])]
        check_alike(named, self.ranks, step=self.state.global_step + 1)

    def _build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Whole joint batches on every process: the collator takes the share.

        Left to itself accelerate splits or deals out batches: it drops incomplete ones, keeps the sampler from hearing
        of a new epoch, and hides from a process the rows that the wording is drawn from.
        """
        loader = super()._build_dataloader(*args, **kwargs)
        if self.ranks.count > 1:
            loader = prepare_data_loader(loader, num_processes=1, process_index=0)
            loader._is_accelerate_prepared = True  # what accelerate itself asks
        return loader

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: DataLoader | None = None) -> nn.Module:
        wrapped = super()._wrap_model(model, training, dataloader)
        if training and wrapped is self.model:  # DDP comes around it next, and would send the whole reader first
            trained = trained_state(wrapped)
            frozen = [name for name, _ in wrapped.named_parameters() if name not in trained]
            frozen += [name for name, _ in wrapped.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, frozen)
        return wrapped

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        # without the parent's pickled arguments: the recipe says the same, and nothing here needs a pickle
        self.model.save(folder, create_model_card=False)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # before clipping; no weight has changed yet
        if self.health is not None:
            self.health.check_gradient(float(norm), step=self.state.global_step + 1)
        return norm

    # -- checkpoints: whole or not there, and no pickle, in which the parent keeps all but the weights ----------------

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.check_weights()
        self.store_flos()
        if not self.args.should_save:
            return
        output = Path(str(self.args.output_dir))
        with new_checkpoint(output, self.state.global_step) as folder:
            self._save(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            write_training_state(
                folder,
                {
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.lr_scheduler.state_dict(),
                    "generators": generator_states(),
                    "losses": {name: getattr(self, name) for name in _LOSSES},
                },
            )
        if self.args.save_total_limit:
            keep_newest(output, self.args.save_total_limit)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        # in place: the parent would load a second copy of the frozen backbones
        self._encoder().restore(Path(checkpoint_path))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self._resumed = read_training_state(Path(checkpoint))
        self.optimizer.load_state_dict(self._resumed["optimizer"])
        self.lr_scheduler.load_state_dict(self._resumed["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: there is no scaler, since nothing trains in float16."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            restore_generators(self._resumed["generators"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._restore_losses()
        if self.state.global_step < self.state.max_steps:  # the parent would go one step beyond its end
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._restore_losses()  # a checkpoint at the end of the last epoch leaves no epoch to run
        return super()._finalize_training(*args, **kwargs)

    def _restore_losses(self) -> None:
        if self._resumed is None or not self._losses_missing:
            return
        self._losses_missing = False
        for name, value in self._resumed["losses"].items():  # the parent has set them to zero after it loaded the rest
            if name in _LOSSES:
                setattr(self, name, value.to(self.args.device) if isinstance(value, Tensor) else value)

    def _encoder(self) -> TextEncoder:
        model = self.accelerator.unwrap_model(self.model) if hasattr(self, "accelerator") else self.model
        assert isinstance(model, InstructedTransformer)
        return model.text_encoder
