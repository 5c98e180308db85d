"""Dynamic batching of embedding requests on one thread, and heap trimming."""

import ctypes
import functools
import sys
from collections.abc import Callable
from bisect import bisect_left
from collections.abc import Sequence
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import numpy as np
import torch
from promptembedder.model import DualEncoder
from promptembedder.backbone import TokenRow, in_order
from promptembedder.types import Float, Tensor

__all__ = ['InstructionKey', 'VectorComputer', 'give_back', 'next_batch']

def give_back() -> None:
    """Return memory that is free to the system, where the C library would keep it."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Of glibc; None with another library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


# Padding that a batch may hold: this share of its texts' tokens, or so many tokens, whichever is more. A pass costs as
# much as 64 tokens beside its own (backbones/batching.py), so that much padding is cheaper than another pass.
_PADDING_SHARE = 0.15
_PADDING_TOKENS = 64


def next_batch(lengths: Sequence[int], *, max_tokens: int) -> list[int]:
    """Places of the texts to read now: the first one, which waits longest, and others of like length.

    Texts are taken from both sides of the first one's length, the least padding first, until padding or budget end it.

    Args:
        lengths: Tokens of each distinct waiting text, in the order of their coming.
        max_tokens: Of the batch, padding included; the first text is taken even if it is longer alone.
    """
    by_length = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    sorted_lengths = [lengths[place] for place in by_length]
    first = bisect_left(sorted_lengths, lengths[0])
    first = by_length.index(0, first)
    low, high = first, first  # the batch is by_length[low..high], its width the length of the last
    total = lengths[0]
    while True:
        # what each side would add: padding below the width, or all below a new width
        shorter = None if low == 0 else sorted_lengths[low - 1]
        longer = None if high + 1 == len(by_length) else sorted_lengths[high + 1]
        count, width = high - low + 2, sorted_lengths[high]
        below = None if shorter is None else count * width - (total + shorter)
        above = None if longer is None else count * longer - (total + longer)
        options = [
            (padding, step)
            for padding, step, added, wide in ((below, "low", shorter, width), (above, "high", longer, longer))
            if padding is not None
            and added is not None
            and wide is not None
            and count * wide <= max_tokens
            and padding <= max(_PADDING_SHARE * (total + added), _PADDING_TOKENS)
        ]
        if not options:
            return by_length[low : high + 1]
        if min(options)[1] == "low":
            low -= 1
            total += sorted_lengths[low]
        else:
            high += 1
            total += sorted_lengths[high]


_CALLS_BETWEEN = 8  # before free memory goes back: a few milliseconds, and batches of all lengths leave holes


@dataclass(frozen=True)
class InstructionKey:
    """An instruction and whose it is: what one tenant's instruction made is not used for another's.

    Else the time of an answer would tell whether somebody else has asked the same.
    """

    tenant: str
    instruction: str


class VectorComputer:
    """Vectors of texts, each under the instructions that are wanted of it; for one thread alone."""

    def __init__(self, encoder: DualEncoder, *, max_batch_tokens: int, max_cached_instructions: int) -> None:
        """Compute with `encoder`, which reads at most `max_batch_tokens` at once, or one text."""
        self._encoder = encoder.eval()
        encoder.reading.max_batch_tokens = max(max_batch_tokens, encoder.max_seq_length)
        # compiled ones are the model's own and nobody's secret
        self._compiled = dict(encoder.store.compiled)
        self._generated: OrderedDict[InstructionKey, Tensor] = OrderedDict()
        self._max_cached = max_cached_instructions
        self._calls = 0

    @property
    def device(self) -> torch.device:
        """Where the reader is."""
        return self._encoder.device

    @torch.inference_mode()
    def vectors(
        self, wanted: Mapping[TokenRow, Sequence[InstructionKey]]
    ) -> dict[tuple[TokenRow, InstructionKey], Float[np.ndarray, " dim"]]:
        """The vector of each text under each instruction that is wanted of it; each text is read once.

        Raises:
            ConfigError: An instruction is too long, or not compiled and there is no prompter.
            ValueError: A vector is not finite.
        """
        self._calls += 1
        if self._calls % _CALLS_BETWEEN == 0:
            give_back()
        soft = self._soft_tokens(list(dict.fromkeys(key for keys in wanted.values() for key in keys)))
        alike: dict[tuple[InstructionKey, ...], list[TokenRow]] = {}
        for row, keys in wanted.items():
            # texts with one instruction each are read together, whichever it is
            alike.setdefault(tuple(keys) if len(keys) > 1 else (), []).append(row)
        found: dict[tuple[TokenRow, InstructionKey], Float[np.ndarray, " dim"]] = {}
        for keys, rows in alike.items():
            owns = [keys or tuple(wanted[row]) for row in rows]
            vectors = self._shared(rows, keys, soft) if keys else self._single(rows, owns, soft)
            for row, own, of_row in zip(rows, owns, vectors, strict=True):
                found |= {(row, key): vector for key, vector in zip(own, of_row, strict=True)}
        return found

    def _single(
        self,
        rows: Sequence[TokenRow],
        keys: Sequence[tuple[InstructionKey, ...]],
        soft: Mapping[InstructionKey, Tensor],
    ) -> Float[np.ndarray, "texts 1 dim"]:
        def embed(places: list[int]) -> Tensor:
            own = torch.stack([soft[keys[place][0]] for place in places])
            return self._encoder.embed_rows([rows[place] for place in places], own)

        batches, parts = self._encoder.reading.in_batches(rows, embed, packs=True)
        return in_order(batches, parts, dim=0).float().cpu().numpy()[:, None]

    def _shared(
        self, rows: Sequence[TokenRow], keys: Sequence[InstructionKey], soft: Mapping[InstructionKey, Tensor]
    ) -> Float[np.ndarray, "texts instructions dim"]:
        together = torch.stack([soft[key] for key in keys])

        def embed(places: list[int]) -> Tensor:
            states = self._encoder.read_rows([rows[place] for place in places])
            return self._encoder.embed_each_after(states, together).transpose(0, 1)

        batches, parts = self._encoder.reading.in_batches(rows, embed)
        return in_order(batches, parts, dim=0).float().cpu().numpy()

    def _soft_tokens(self, keys: Sequence[InstructionKey]) -> dict[InstructionKey, Tensor]:
        at_hand: dict[InstructionKey, Tensor] = {}
        for key in keys:
            if key.instruction in self._compiled:
                at_hand[key] = self._compiled[key.instruction].to(self.device)
            elif key in self._generated:
                self._generated.move_to_end(key)
                at_hand[key] = self._generated[key]
        missing = [key for key in keys if key not in at_hand]
        if missing:
            # past the encoder's own memory, which knows no tenants
            made = self._encoder.generate([key.instruction for key in missing])
            at_hand |= dict(zip(missing, made.unbind(0), strict=True))
            # copies: a row of a batch would keep the whole batch in memory
            self._generated |= {key: at_hand[key].clone() for key in missing}
        while len(self._generated) > self._max_cached:
            self._generated.popitem(last=False)
        return at_hand
