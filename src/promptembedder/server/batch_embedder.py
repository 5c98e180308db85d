"""Dynamic batching of embedding requests on one thread, and heap trimming."""

import contextlib
import ctypes
import functools
import sys
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter

import numpy as np
import torch

from promptembedder.backbone import TokenIds, restore_order
from promptembedder.model import DualEncoder
from promptembedder.types import Float, Tensor

__all__ = ["BatchEmbedder", "InstructionKey", "next_batch"]


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    """Find glibc's `malloc_trim`, which returns freed heap memory to the operating system. A no-op elsewhere."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.CDLL(None).malloc_trim
    return lambda _: 0


# Maximum padding of a batch: this share of its texts' tokens or this number of tokens, whichever is larger. A forward
# pass has a fixed cost of about 64 tokens (backbone/batching.py), so that much padding is cheaper than another pass.
_PADDING_SHARE = 0.15
_PADDING_TOKENS = 64


def next_batch(lengths: Sequence[int], *, max_tokens: int) -> list[int]:
    """Select the indices of the next batch: the text that has waited longest, and texts of similar length.

    Texts are added from both sides of the first text's length, smallest padding first, until the padding limit or the
    token budget is reached.

    Args:
        lengths: Number of tokens of each distinct waiting text, in order of arrival.
        max_tokens: Maximum number of tokens of the batch, padding included. The first text is selected even if it
            alone exceeds the maximum.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    sorted_lengths = [lengths[index] for index in by_length]
    first = bisect_left(sorted_lengths, lengths[0])
    low = high = by_length.index(0, first)  # the batch is by_length[low..high], its width the length of the last
    sums = [0, *accumulate(sorted_lengths)]
    while True:
        options = []  # padding after adding the next longer text, which widens the batch, or the next shorter one
        for start, end in ((low, high + 1), (low - 1, high)):
            if start < 0 or end == len(by_length):
                continue
            tokens = sums[end + 1] - sums[start]
            padding = (end + 1 - start) * sorted_lengths[end] - tokens
            if tokens + padding <= max_tokens and padding <= max(_PADDING_SHARE * tokens, _PADDING_TOKENS):
                options.append((padding, start, end))
        if not options:
            return by_length[low : high + 1]
        _, low, high = min(options, key=itemgetter(0))


_TRIM_INTERVAL = 8  # calls between heap trims: a trim takes milliseconds, and varying batch shapes fragment the heap


@dataclass(frozen=True)
class InstructionKey:
    """Cache key of an instruction's soft tokens, separate for each tenant.

    With a shared cache, response times would reveal whether another tenant has used the same instruction.
    """

    tenant: str
    instruction: str


class BatchEmbedder:
    """Computes vectors of texts, each under its requested instructions. Not thread-safe."""

    def __init__(self, encoder: DualEncoder, *, max_batch_tokens: int, max_cached_instructions: int) -> None:
        """Wrap `encoder`.

        Args:
            max_batch_tokens: Maximum number of tokens of a forward pass, padding included. At least one text.
            max_cached_instructions: Number of free instructions whose soft tokens are cached, over all tenants.
        """
        self._encoder = encoder.eval()
        encoder.reading.max_batch_tokens = max(max_batch_tokens, encoder.max_seq_length)
        # compiled instructions are public: every tenant may use them
        self._compiled = dict(encoder.store.compiled)
        self._generated: OrderedDict[InstructionKey, Tensor] = OrderedDict()
        self._max_cached = max_cached_instructions
        self._calls = 0

    @torch.inference_mode()
    def embed(
        self, requested: Mapping[TokenIds, Sequence[InstructionKey]]
    ) -> dict[tuple[TokenIds, InstructionKey], Float[np.ndarray, " dim"]]:
        """Compute the vector of each text under each of its instructions, prefilling each text once.

        Raises:
            ConfigError: If an instruction is too long, or is not compiled and there is no prompter.
            WeightsError: If a vector is not finite.
        """
        self._calls += 1
        if self._calls % _TRIM_INTERVAL == 0:
            _malloc_trim()(0)
        soft = self._soft_tokens(list(dict.fromkeys(key for keys in requested.values() for key in keys)))
        groups: dict[tuple[InstructionKey, ...], list[TokenIds]] = {}
        for row, keys in requested.items():
            # texts with a single instruction share a batch, whichever instruction it is
            groups.setdefault(tuple(keys) if len(keys) > 1 else (), []).append(row)
        results: dict[tuple[TokenIds, InstructionKey], Float[np.ndarray, " dim"]] = {}
        for keys, rows in groups.items():
            row_keys = [keys or tuple(requested[row]) for row in rows]
            if keys:
                vectors = self._embed_under_all(rows, keys, soft)
            else:
                vectors = self._embed_under_one_each(rows, row_keys, soft)
            for row, its_keys, its_vectors in zip(rows, row_keys, vectors, strict=True):
                results |= {(row, key): vector for key, vector in zip(its_keys, its_vectors, strict=True)}
        return results

    def _embed_under_one_each(
        self,
        rows: Sequence[TokenIds],
        keys: Sequence[tuple[InstructionKey, ...]],
        soft: Mapping[InstructionKey, Tensor],
    ) -> Float[np.ndarray, "texts 1 dim"]:
        def embed(indices: list[int]) -> Tensor:
            soft_tokens = torch.stack([soft[keys[index][0]] for index in indices])
            return self._encoder.embed_token_ids([rows[index] for index in indices], soft_tokens)

        batches, parts = self._encoder.reading.map_batches(rows, embed, supports_packing=True)
        return restore_order(batches, parts, dim=0).float().cpu().numpy()[:, None]

    def _embed_under_all(
        self, rows: Sequence[TokenIds], keys: Sequence[InstructionKey], soft: Mapping[InstructionKey, Tensor]
    ) -> Float[np.ndarray, "texts instructions dim"]:
        soft_tokens = torch.stack([soft[key] for key in keys])

        def embed(indices: list[int]) -> Tensor:
            states = self._encoder.read_rows([rows[index] for index in indices])
            return self._encoder.embed_cached(states, soft_tokens).transpose(0, 1)

        batches, parts = self._encoder.reading.map_batches(rows, embed)
        return restore_order(batches, parts, dim=0).float().cpu().numpy()

    def _soft_tokens(self, keys: Sequence[InstructionKey]) -> dict[InstructionKey, Tensor]:
        available: dict[InstructionKey, Tensor] = {}
        for key in keys:
            if key.instruction in self._compiled:
                available[key] = self._compiled[key.instruction].to(self._encoder.device)
            elif key in self._generated:
                self._generated.move_to_end(key)
                available[key] = self._generated[key]
        missing = [key for key in keys if key not in available]
        if missing:
            # bypass the encoder's cache, which does not separate tenants
            generated = self._encoder.generate([key.instruction for key in missing])
            available |= dict(zip(missing, generated.unbind(0), strict=True))
            # clone: a view would keep the memory of the complete batch alive
            self._generated |= {key: available[key].clone() for key in missing}
        while len(self._generated) > self._max_cached:
            self._generated.popitem(last=False)
        return available
