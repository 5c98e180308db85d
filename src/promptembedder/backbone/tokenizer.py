"""Tokenize texts: special strings are plain text, padding is on the left, truncation is counted."""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from promptembedder.types import Int, Tensor

__all__ = ["TextTokenizer", "TokenBatch"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded token ids. An empty text without a prefix is a row of padding."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    text_mask: Int[Tensor, "batch seq"]
    """1 for tokens of the text itself, 0 for its prefix, suffix and padding."""
    truncated: int
    """Number of truncated texts."""


class TextTokenizer:
    """Wrapper of a transformers tokenizer with one interface for every family.

    Attributes:
        prefix: Token ids at the start of every text: BOS, or `text_start`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, needs_bos: bool, text_start: str = "") -> None:
        """Wrap `tokenizer`.

        Args:
            needs_bos: Start every text with BOS even if the tokenizer does not add it.
            text_start: Start of every text if there is no BOS.
        """
        self.hf, self.text_start = tokenizer, text_start
        self._begin()
        bos = tokenizer.bos_token_id
        own_prefix = tokenizer("", add_special_tokens=True)["input_ids"]
        starts_with_bos = bool(own_prefix) and own_prefix[0] == bos
        self.prefix: list[int] = [bos] if bos is not None and (needs_bos or starts_with_bos) else []
        if not self.prefix and text_start:
            self.prefix = self.text_ids([text_start])[0]

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        max_length: int,
        text_length: int | None = None,
        prefixes: Sequence[str] | None = None,
        suffixes: Sequence[str] | None = None,
    ) -> TokenBatch:
        """Tokenize each text to at most `max_length` tokens per row, including BOS or `text_start`.

        Args:
            text_length: Maximum number of tokens of the text itself. If None, limited only by prefixes and suffixes.
            prefixes: Strings before each text. If a row is too long, the text is truncated and the prefix is not.
            suffixes: Strings after each text, truncated like `prefixes`.
        """
        begins = [
            self.prefix + head for head in (self.text_ids(prefixes) if prefixes is not None else [[] for _ in texts])
        ]
        ends = self.text_ids(suffixes) if suffixes is not None else [[] for _ in texts]
        rows = self.text_ids(texts)
        rooms = [max(max_length - len(begin) - len(end), 0) for begin, end in zip(begins, ends, strict=True)]
        if text_length is not None:
            rooms = [min(room, text_length) for room in rooms]
        kept = [row[:room] for row, room in zip(rows, rooms, strict=True)]
        whole = [(begin + row + end)[:max_length] for begin, row, end in zip(begins, kept, ends, strict=True)]
        of_text = [
            ([0] * len(begin) + [1] * len(row) + [0] * len(end))[:max_length]
            for begin, row, end in zip(begins, kept, ends, strict=True)
        ]
        return TokenBatch(
            # 0 as padding: masked positions are never attended to, so no pad token is needed
            ids=_left_padded(whole),
            mask=_left_padded([[1] * len(row) for row in whole]),
            text_mask=_left_padded(of_text),
            truncated=sum(len(row) > room for row, room in zip(rows, rooms, strict=True)),
        )

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text without prefix, suffix or truncation. Safe to call from any thread."""
        if not texts:  # transformers tokenizers fail on an empty list
            return []
        self._notice_fork()
        # split_special_tokens: "<|im_end|>" in a text is ten characters, not a control token. The option is set in each
        # call, which raises an error while the tokenizer runs in another thread.
        with self._one_at_a_time:
            return self.hf(
                list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )["input_ids"]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the lock and process id, for copies and other processes."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_one_at_a_time", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state with a new lock."""
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._one_at_a_time, self._process = threading.Lock(), os.getpid()

    def _notice_fork(self) -> None:
        """Make a forked process able to compute. Every text and instruction is tokenized before its forward pass.

        A fork copies the memory but no threads: torch would wait forever for the parent's threads, and this tokenizer
        for a thread that held the lock.
        """
        if os.getpid() != self._process:
            self._begin()
            torch.set_num_threads(1)
            logger.info("this process was forked: computing with one thread")


def _left_padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch seq"]:
    width = max((len(row) for row in rows), default=0)
    padded = [[0] * (width - len(row)) + list(row) for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)
