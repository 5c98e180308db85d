"""Tokenize texts and compare vocabularies. Special strings are plain text, padding is on the left."""

import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from promptembedder.types import Int, Tensor

__all__ = ["TextTokenizer", "TokenBatch", "shared_token_ids"]

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


def shared_token_ids(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Return the ids of tokens that decode to the same bytes in both vocabularies: source ids and target ids, aligned.

    Special tokens are excluded, since they decode to no text. Ids are sorted by source id.
    """
    source_ids, target_ids = _spelling(source), _spelling(target)
    pairs = sorted((source_ids[piece], target_ids[piece]) for piece in source_ids.keys() & target_ids.keys())
    columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _spelling(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    byte_level = _is_byte_level(tokenizer)
    spelled: dict[bytes, int] = {}
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            piece = _from_byte_level(token) if byte_level else _from_sentencepiece(token)
            if piece:
                spelled[piece] = min(index, spelled.get(piece, index))  # same bytes: keep the lowest id
    return spelled


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    return '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {})


def _from_byte_level(token: str) -> bytes:
    """Return the bytes of a token, or none if it contains a symbol outside of the alphabet."""
    table = _byte_of_symbol()
    return bytes(table[symbol] for symbol in token) if all(symbol in table for symbol in token) else b""


def _from_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "replace")


@cache
def _byte_of_symbol() -> dict[str, int]:
    """Return the byte of each symbol in GPT-2's alphabet. Bytes that are not printable have code points from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
