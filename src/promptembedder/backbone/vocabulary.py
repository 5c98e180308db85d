"""Strings in both of two vocabularies, independent of how their families encode spaces and bytes."""

import json
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from promptembedder.types import Tensor

__all__ = ["shared_token_ids"]


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
