"""The usual way: the reader reads instruction and text, and its text states are pooled; frozen, LoRA or all trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbones import Backbone, decoder_layers, read_tokens
from promptembedder.data import clean_instruction
from promptembedder.models.adapters import add_lora
from promptembedder.models.baseline_checkpoint import load_baseline, restore_baseline, save_baseline
from promptembedder.models.config import BaselineConfig, ModelConfig
from promptembedder.models.text_encoder import TextEncoder
from promptembedder.nn import left_padded, pooled, unit_vectors

__all__ = ["PooledEncoder"]

# (before the text without an instruction, before it with one, after it)
_TEMPLATES = {
    "plain": ("", "", ""),
    "instruct": ("", "Instruct: {instruction}\nQuery: ", ""),
    "prompteol": ('This text: "', 'Task: {instruction}\nThis text: "', '" means in one word: "'),
}


class PooledEncoder(TextEncoder):
    """A reader with its text states pooled (mean), or its last state of all (last)."""

    def __init__(self, settings: ModelConfig, baseline: BaselineConfig, reader: Backbone, *, seed: int = 0) -> None:
        """Read with `reader`, which is changed where `baseline` trains it.

        Args:
            seed: Of the adapters' random start.
        """
        super().__init__(reader, max_seq_length=settings.max_seq_length)
        self.settings, self.baseline = settings, baseline
        if baseline.kind == "lora":
            add_lora(reader.model, rank=baseline.lora_rank, alpha=baseline.lora_alpha, seed=seed)
        elif baseline.kind == "full":
            reader.float().requires_grad_(True)  # an optimiser's steps are too small for bf16 weights
        if baseline.gradient_checkpointing:
            # renamed in transformers 5.23, where the old name warns
            enable = getattr(reader.model, "activation_checkpointing_enable", None)
            (enable or reader.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Token ids of the texts within their template; no prompt leaves the instruction out."""
        instruction = clean_instruction(prompt)
        bare, instructed, tail = _TEMPLATES[self.baseline.template]
        head = instructed.replace("{instruction}", instruction) if instruction else bare
        return dict(self.token_features(inputs, heads=[head] * len(inputs), tails=[tail] * len(inputs)))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [batch dim_r], float32 and of length 1 (0 for an empty text, pooled alone).

        Raises:
            ValueError: A weight or state is not finite (evaluation only: a trainer has its own check).
        """
        ids, mask = left_padded(features["input_ids"], features["attention_mask"])
        over = mask
        if self.settings.pooling == "mean":  # over the text alone, moved to where its tokens were moved
            over = left_padded(features["text_mask"], features["attention_mask"])[0]
        trains = self.training and torch.is_grad_enabled() and self.baseline.kind != "frozen"
        bidirectional = self.baseline.attention == "bidirectional"
        with torch.set_grad_enabled(trains):
            states = read_tokens(self.reader.decoder, ids, mask, bidirectional=bidirectional)
        vectors = unit_vectors(pooled(states, over, pooling=self.settings.pooling))
        return {**features, "sentence_embedding": self.finite(vectors)}

    def embed_columns(self, columns: Sequence[dict[str, Any]]) -> None:
        """Add `sentence_embedding` to the features of all columns of a batch, one column after the other."""
        for features in columns:
            features |= self.forward(features)

    def train(self, mode: bool = True) -> "PooledEncoder":
        """Training mode reaches the reader's layers where it is needed: checkpointing happens in it alone."""
        super().train(mode)
        if self.baseline.gradient_checkpointing:
            for layer in decoder_layers(self.reader.decoder):
                layer.training = mode  # and not what is inside: GPT-2 has dropout there
        return self

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write what was trained and the manifest."""
        save_baseline(Path(output_path), self, self.settings, self.baseline)

    @classmethod
    def from_folder(cls, folder: Path, *, cache_folder: Path | None = None) -> "PooledEncoder":
        """The module that `save` wrote."""
        return load_baseline(folder, cls, cache_folder=cache_folder)

    def restore(self, folder: Path) -> None:
        """Copy the trained weights of a saved model into this one, in place."""
        restore_baseline(self, folder)
