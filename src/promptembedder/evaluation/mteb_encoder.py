"""Adapter of an encoder to mteb: the task's instruction as prompt, each text encoded once, with counts."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from transformers import PreTrainedTokenizerBase

from promptembedder.errors import ConfigError
from promptembedder.model import Encoder

__all__ = ["MtebAdapter"]


class MtebAdapter(AbsEncoder):
    """Encoder for mteb under the instruction in the attribute `instruction`, which the caller sets.

    In retrieval only queries are encoded under the instruction, otherwise all texts.
    """

    def __init__(self, encoder: Encoder, instructions: Sequence[str], *, batch_size: int = 64) -> None:
        """Wrap `encoder`, for one task.

        Args:
            instructions: All instructions of the task. An encoder with `encode_instructions` computes their vectors
                in one pass over the texts. Empty for a model without instructions.
        """
        self.model = encoder
        self.instructions = tuple(dict.fromkeys(instructions))
        self.instruction = self.instructions[0] if self.instructions else None
        self.batch_size = batch_size
        # mteb requires the form owner/name; the name is not used
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": "promptembedder/evaluated",
                "revision": "none",
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )
        self.texts = 0
        self.seconds = 0.0
        self._tokens = 0
        tokenizer = getattr(encoder, "tokenizer", None)
        self._tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        self._encode_many = getattr(encoder, "encode_instructions", None) if len(self.instructions) > 1 else None
        self._vectors: dict[str | None, dict[str, np.ndarray]] = {}

    @property
    def tokens(self) -> int | None:
        """Number of tokens encoded so far, after truncation. None without a tokenizer."""
        return None if self._tokenizer is None else self._tokens

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Encode the `text` of the batches of `inputs`. The other arguments of mteb are ignored."""
        with_prompt = self.instructions and prompt_type != PromptType.document
        prompt = self.instruction if with_prompt else None
        texts = [text for batch in inputs for text in batch["text"]]
        known = self._vectors.setdefault(prompt, {})
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            start = time.perf_counter()
            self._encode_new(new, prompt)
            self.seconds += time.perf_counter() - start
            self._count(new)
        return np.stack([known[text] for text in texts])

    def _encode_new(self, texts: list[str], prompt: str | None) -> None:
        if self._encode_many is not None and prompt is not None:
            try:
                many = self._encode_many(texts, self.instructions, batch_size=self.batch_size)
            except ConfigError:  # the states of the text depend on the instruction in this model
                self._encode_many = None
            else:
                for instruction, vectors in zip(self.instructions, many, strict=True):
                    self._vectors.setdefault(instruction, {}).update(zip(texts, vectors, strict=True))
                return
        vectors = self.model.encode(texts, prompt=prompt, batch_size=self.batch_size, show_progress_bar=False)
        self._vectors[prompt].update(zip(texts, np.asarray(vectors, dtype=np.float32), strict=True))

    def _count(self, texts: list[str]) -> None:
        self.texts += len(texts)
        if self._tokenizer is not None:
            limit = getattr(self.model, "max_seq_length", None) or float("inf")
            # verbose=False suppresses warnings about long texts
            ids = self._tokenizer(texts, verbose=False)["input_ids"]
            self._tokens += int(sum(min(len(text), limit) for text in ids))
