"""Cheaper ways to embed with the same frozen LLM, behind the same door."""

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from promptembedder.backbones import Backbone, read_text
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError
from promptembedder.nn import POOLINGS, left_padded, pooled, unit_vectors

__all__ = ["FrozenPooling", "frozen_pooling"]


class FrozenPooling(InputModule):
    """Mean, or last, of the frozen LLM's final text states; ignores the instruction and trains nothing."""

    def __init__(self, reader: Backbone, *, pooling: str, max_seq_length: int) -> None:
        """Pool what `reader` computes; it may be shared with other models."""
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"unknown pooling {pooling!r}. Use one of: {', '.join(POOLINGS)}.")
        self.reader, self.pooling = reader, pooling
        self.max_seq_length = min(max_seq_length, reader.max_positions or max_seq_length)

    @property
    def tokenizer(self) -> Any:
        """The reader's own tokenizer."""
        return self.reader.tokenizer.foreign

    def get_embedding_dimension(self) -> int:
        """Width of the embedding: the reader's."""
        return self.reader.dim

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Token ids of the texts."""
        batch = self.reader.tokenizer.tokenize([clean_text(text) for text in inputs], max_length=self.max_seq_length)
        return {"input_ids": batch.ids, "attention_mask": batch.mask}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [batch dim], float32 and of length 1 (0 for an empty text)."""
        states = read_text(self.reader.decoder, *left_padded(features["input_ids"], features["attention_mask"]))
        return {
            **features,
            "sentence_embedding": unit_vectors(pooled(states.last_hidden, states.mask, pooling=self.pooling)),
        }

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Refuse: there is nothing of its own to save."""
        raise ConfigError(
            "a frozen pooling baseline has no weights of its own; name its backbone instead of saving it."
        )


def frozen_pooling(reader: Backbone, *, pooling: str = "mean", max_seq_length: int = 512) -> SentenceTransformer:
    """A SentenceTransformer that pools the frozen reader's text states."""
    return SentenceTransformer(modules=[FrozenPooling(reader, pooling=pooling, max_seq_length=max_seq_length)])
