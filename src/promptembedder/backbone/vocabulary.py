"""Strings that two vocabularies share, whatever marks their families write for spaces and bytes."""

import json
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from promptembedder.types import Tensor

__all__ = ["shared_token_ids"]


def shared_token_ids(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids of the tokens that spell the same bytes in both vocabularies: source ids and target ids, row by row.

    Special tokens are left out: they spell nothing. Sorted by source id.
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
                spelled[piece] = min(index, spelled.get(piece, index))  # two tokens, one spelling: the older one
    return spelled


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    return '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {})


def _from_byte_level(token: str) -> bytes:
    """The bytes that a token spells; none if it holds a symbol outside the alphabet."""
    table = _byte_of_symbol()
    return bytes(table[symbol] for symbol in token) if all(symbol in table for symbol in token) else b""


def _from_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "replace")


@cache
def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for code points from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
