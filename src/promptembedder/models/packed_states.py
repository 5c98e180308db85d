"""What a reader remembers of one text, packed into one flat tensor, and a batch of such texts unpacked again."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptembedder.backbones import TextStates
from promptembedder.errors import ConfigError
from promptembedder.nn import left_padded_rows
from promptembedder.shapes import Float, Tensor

__all__ = ["KINDS", "PackedText", "StatesLayout", "packed_texts", "unpacked_states"]

KINDS = ("exact", "bfloat16", "int8")

_LARGEST = 127  # int8, symmetric


@dataclass(frozen=True)
class StatesLayout:
    """Shapes of a reader's keys and values: by layer, keys then values, (heads, head_dim); and their dtype."""

    shapes: tuple[tuple[int, int], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, states: TextStates) -> "StatesLayout":
        """The layout of states that were read."""
        pairs = itertools.chain.from_iterable(zip(states.keys, states.values, strict=True))
        return cls(tuple((each.shape[1], each.shape[3]) for each in pairs), states.keys[0].dtype)


@dataclass(frozen=True)
class PackedText:
    """One text.

    Attributes:
        numbers: All keys and values, [layers * 2 * heads * tokens * head_dim].
        scales: For int8, what each run of head_dim numbers is multiplied by, float32 [runs]; empty otherwise.
    """

    numbers: Tensor
    scales: Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numbers.nbytes + self.scales.nbytes


def packed_texts(states: TextStates, lengths: Sequence[int], kind: str) -> list[PackedText]:
    """Each text of a left-padded batch, on the CPU.

    Args:
        lengths: Tokens of each text, at least one.
        kind: `exact` keeps the reader's own dtype; `bfloat16`; `int8` has one scale for each head of each token, the
            largest number of which becomes 127: a rounding error of at most 1/254 of it.

    Raises:
        ConfigError: `kind` is unknown.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of stored states {kind!r}. Use one of: {', '.join(KINDS)}.")
    tensors = list(itertools.chain.from_iterable(zip(states.keys, states.values, strict=True)))
    packed = []
    for row, length in enumerate(lengths):
        parts = [tensor[row, :, tensor.shape[2] - length :] for tensor in tensors]
        packed.append(_packed(parts, kind))
    return packed


def unpacked_states(texts: Sequence[PackedText], layout: StatesLayout, *, device: torch.device) -> TextStates:
    """The texts as one left-padded batch; `TextStates.hidden` is empty."""
    per_token = sum(heads * width for heads, width in layout.shapes)
    lengths = [text.numbers.numel() // per_token for text in texts]
    longest = max(lengths)
    whole = [torch.zeros(len(texts), heads, longest, width, dtype=layout.dtype) for heads, width in layout.shapes]
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        sizes = [heads * length * width for heads, width in layout.shapes]
        for target, part in zip(whole, _numbers(text, layout, length).split(sizes), strict=True):
            heads, width = target.shape[1], target.shape[3]
            target[row, :, longest - length :] = part.view(heads, length, width)
    moved = [tensor.to(device) for tensor in whole]
    _, mask = left_padded_rows([[0] * length for length in lengths], device=device)
    hidden = torch.zeros(len(texts), longest, 0, dtype=layout.dtype, device=device)
    return TextStates(keys=tuple(moved[::2]), values=tuple(moved[1::2]), mask=mask, hidden=hidden)


def _packed(parts: Sequence[Float[Tensor, "heads tokens head_dim"]], kind: str) -> PackedText:
    nothing = torch.zeros(0)
    if kind == "int8":
        scales = [part.abs().amax(dim=-1).float() / _LARGEST for part in parts]
        rounded = [
            (part.float() / scale.unsqueeze(-1).clamp_min(math.ulp(0.0))).round().clamp(-_LARGEST, _LARGEST)
            for part, scale in zip(parts, scales, strict=True)
        ]
        numbers = torch.cat([part.to(torch.int8).flatten() for part in rounded])
        return PackedText(numbers.cpu(), torch.cat([scale.flatten() for scale in scales]).cpu())
    numbers = torch.cat([part.flatten() for part in parts])
    return PackedText((numbers if kind == "exact" else numbers.bfloat16()).cpu(), nothing)


def _numbers(text: PackedText, layout: StatesLayout, length: int) -> Tensor:
    """All keys and values of one text in the reader's dtype."""
    if not text.scales.numel():
        return text.numbers.to(layout.dtype)
    runs = torch.tensor([heads * length for heads, _ in layout.shapes])
    widths = torch.tensor([width for _, width in layout.shapes]).repeat_interleave(runs)
    return (text.numbers.float() * text.scales.repeat_interleave(widths)).to(layout.dtype)
