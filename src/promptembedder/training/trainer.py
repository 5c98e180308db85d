"""sentence-transformers' trainer, told what is special about a frozen reader and soft tokens."""

import os
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.losses.gradcache import CachedLossMixin

from promptembedder.models import InstructedTransformer, SoftTokenEncoder, TextEncoder
from promptembedder.shapes import Tensor

__all__ = ["PromptEmbedderTrainer"]


class PromptEmbedderTrainer(SentenceTransformerTrainer):
    """Embeds all columns of a step in one pass, logs the soft tokens' health, checkpoints trained weights only."""

    _embeds_together = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Loss of a batch; see `collect_features` for how it is embedded."""
        loss = self.loss[inputs["dataset_name"]] if isinstance(self.loss, dict) else self.loss
        # A wrapped model (DDP) must see each forward pass, and losses that cache gradients split the columns and
        # embed the pieces themselves.
        self._embeds_together = model is self.model and not isinstance(loss, CachedLossMixin)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Tensor | None]:
        """The columns' features, embedded in one pass where possible: the loss then finds their embeddings ready."""
        features, labels = super().collect_features(inputs)
        encoder = self._encoder()
        if self._embeds_together and isinstance(encoder, SoftTokenEncoder):
            encoder.embed_columns(features)
        return features, labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the soft tokens' diagnostics beside each training loss."""
        if "loss" in logs:
            logs = {**logs, **{name: round(value, 4) for name, value in self._encoder().diagnostics.items()}}
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        # without the parent's pickled arguments: the recipe says the same, and nothing here needs a pickle
        self.model.save(folder, create_model_card=False)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        # in place: the parent would load a second copy of the frozen backbones
        self._encoder().restore(Path(checkpoint_path))

    def _encoder(self) -> TextEncoder:
        model = self.accelerator.unwrap_model(self.model) if hasattr(self, "accelerator") else self.model
        assert isinstance(model, InstructedTransformer)
        return model.text_encoder
