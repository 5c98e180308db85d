"""From texts to token ids: special strings are text, padding is on the left, truncation is counted."""

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
    """Left-padded token ids. A text without tokens, where nothing is put before it, is a row of padding."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    text_mask: Int[Tensor, "batch seq"]
    """1 for the tokens of the text itself, without what was put around it."""
    truncated: int
    """How many texts were longer than the limit and lost their end."""


class TextTokenizer:
    """Wrapper of a transformers tokenizer with one interface for every family.

    Attributes:
        prefix: Ids that every text begins with: BOS, or `text_start`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, needs_bos: bool, text_start: str = "") -> None:
        """Wrap `tokenizer`.

        Args:
            needs_bos: Begin every text with its BOS even if it does not do so itself.
            text_start: What texts begin with where they begin with no BOS.
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
        """Ids of each text, at most `max_length` a row, BOS or `text_start` included.

        Args:
            text_length: At most so many tokens of the text itself; None leaves it what prefixes and suffixes leave.
            prefixes: Put before each text; where they do not fit beside it, the text gives way and they stay whole.
            suffixes: Put after each text, likewise.
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
            # 0 as padding: masked positions are never read, so no pad token is needed
            ids=_left_padded(whole),
            mask=_left_padded([[1] * len(row) for row in whole]),
            text_mask=_left_padded(of_text),
            truncated=sum(len(row) > room for row, room in zip(rows, rooms, strict=True)),
        )

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone, whatever its length: nothing before it, nothing after it. For any thread."""
        if not texts:  # transformers tokenizers fail on an empty list
            return []
        self._notice_fork()
        # split_special_tokens: "<|im_end|>" in a text is ten characters, not an order to the model; it is set anew in
        # each call, which the tokenizer refuses while it works for another thread
        with self._one_at_a_time:
            return self.hf(
                list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )["input_ids"]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: without the lock, which belongs to this one."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_one_at_a_time", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._one_at_a_time, self._process = threading.Lock(), os.getpid()

    def _notice_fork(self) -> None:
        """Make a forked process able to compute; here, since every text and instruction comes by before it is read.

        A fork takes the memory along and no threads: torch would wait for ever for those that its parent computed with,
        and so would this for a thread that held the lock.
        """
        if os.getpid() != self._process:
            self._begin()
            torch.set_num_threads(1)
            logger.info("this process was forked: computing with one thread")


def _left_padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch seq"]:
    width = max((len(row) for row in rows), default=0)
    padded = [[0] * (width - len(row)) + list(row) for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)
