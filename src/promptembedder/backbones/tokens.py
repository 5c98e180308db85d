"""From texts to token ids: special strings are text, padding is on the left, truncation is counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from promptembedder.shapes import Int, Tensor

__all__ = ["TextTokenizer", "TokenBatch"]


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded token ids. A text without tokens is a row of padding."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    truncated: int
    """How many texts were longer than the limit and lost their end."""


class TextTokenizer:
    """A foreign tokenizer reduced to what we need, the same for every family."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, needs_bos: bool) -> None:
        """Wrap `tokenizer`; begin every text with its BOS if it does so itself or `needs_bos` says so."""
        self.foreign = tokenizer
        bos = tokenizer.bos_token_id
        own_prefix = tokenizer("", add_special_tokens=True)["input_ids"]
        starts_with_bos = bool(own_prefix) and own_prefix[0] == bos
        self._prefix: list[int] = [bos] if bos is not None and (needs_bos or starts_with_bos) else []

    def tokenize(self, texts: Sequence[str], *, max_length: int, tails: Sequence[str] | None = None) -> TokenBatch:
        """Ids of each text, at most `max_length` a text, BOS included.

        Args:
            tails: Added after each text; where both do not fit, the text gives way and the tail stays whole.
        """
        ends = self._ids(tails) if tails is not None else [[] for _ in texts]
        rows = self._ids(texts)
        rooms = [max(max_length - len(self._prefix) - len(end), 0) for end in ends]
        kept = [
            (self._prefix + row[:room] + end)[:max_length] for row, room, end in zip(rows, rooms, ends, strict=True)
        ]
        width = max((len(row) for row in kept), default=0)
        # 0 as padding: masked positions are never read, so no pad token is needed
        ids = torch.tensor([[0] * (width - len(row)) + row for row in kept], dtype=torch.long)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in kept], dtype=torch.long)
        shape = (len(kept), width)
        truncated = sum(len(row) > room for row, room in zip(rows, rooms, strict=True))
        return TokenBatch(ids.reshape(shape), mask.reshape(shape), truncated)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:  # the foreign tokenizer stumbles over nothing
            return []
        # split_special_tokens: "<|im_end|>" in a text is ten characters, not an order to the model
        return self.foreign(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
