"""Unpadded (varlen) batches and the attention function that keeps their texts apart."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from promptembedder.types import Bool, Float, Int, Tensor

__all__ = [
    "ATTENTION",
    "Packing",
    "Run",
    "current_packing",
    "few_query_attention",
    "has_varlen",
    "packed_attention",
    "packing_texts",
    "varlen_attention",
]

# attention of a batch: (queries [batch heads new head_dim], keys, values, mask) -> [batch new heads head_dim]
Attend = Callable[[Tensor, Tensor, Tensor, Bool[Tensor, "1 1 new seq"] | None], Tensor]


@dataclass(frozen=True)
class Run:
    """Adjacent texts of one length.

    Attributes:
        first: Index of the first text.
        start: First column of the first text.
        texts: Number of texts.
        length: Number of tokens of each text.
    """

    first: int
    start: int
    texts: int
    length: int


class Packing:
    """Layout of an unpadded row: all texts, then all soft tokens.

    Attributes:
        lengths: Tokens of each text.
        suffix_len: Soft tokens of each text.
        device: Device of the row.
    """

    def __init__(self, lengths: list[int], *, suffix_len: int, device: torch.device) -> None:
        """Create the layout. Adjacent texts of one length share one attention call."""
        self.lengths, self.suffix_len, self.device = lengths, suffix_len, device

    @property
    def max_seqlen(self) -> int:
        """Number of columns of the longest text and its soft tokens."""
        return max(self.lengths) + self.suffix_len

    @property
    def suffix_tokens(self) -> int:
        """Number of soft tokens of all texts."""
        return len(self.lengths) * self.suffix_len

    @cached_property
    def runs(self) -> list[Run]:
        """Maximal groups of adjacent texts of one length."""
        runs: list[Run] = []
        start = first = 0
        for length, texts in groupby(self.lengths):
            count = len(list(texts))
            runs.append(Run(first, start, count, length))
            first, start = first + count, start + count * length
        return runs

    @cached_property
    def order(self) -> Int[Tensor, " columns"]:
        """Permutation of the columns after which each text is followed by its soft tokens."""
        number = torch.arange(len(self.lengths), device=self.device)
        of_text = number.repeat_interleave(torch.tensor(self.lengths, device=self.device))
        return torch.cat([of_text, number.repeat_interleave(self.suffix_len)]).argsort(stable=True)

    @cached_property
    def inverse_order(self) -> Int[Tensor, " columns"]:
        """Inverse permutation of `order`."""
        return self.order.argsort()

    @cached_property
    def cu_seqlens(self) -> Int[Tensor, " bounds"]:
        """Cumulative lengths of texts with their soft tokens, from 0, in `order`."""
        own = accumulate((length + self.suffix_len for length in self.lengths), initial=0)
        return torch.tensor(list(own), dtype=torch.int32, device=self.device)

    @cached_property
    def cu_seqlens_suffix(self) -> Int[Tensor, " bounds"]:
        """Cumulative numbers of soft tokens, from 0."""
        return torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=self.device) * self.suffix_len


class _Current(threading.local):
    packing: Packing | None = None


_current = _Current()


def current_packing() -> Packing | None:
    """Return the layout of this thread's current row, or None for a padded batch."""
    return _current.packing


@contextmanager
def packing_texts(packing: Packing | None) -> Iterator[None]:
    """Set the layout for attention inside the block, in this thread only. None means a padded batch."""
    _current.packing = packing
    try:
        yield
    finally:
        _current.packing = None


def packed_attention(
    packing: Packing,
    query: Float[Tensor, "1 heads new head_dim"],
    key: Float[Tensor, "1 key_heads columns head_dim"],
    value: Float[Tensor, "1 key_heads columns head_dim"],
    mask: Bool[Tensor, "1 1 max_seqlen max_seqlen"] | None,
    attend: Attend,
) -> Float[Tensor, "1 new heads head_dim"]:
    """Compute attention within each text and its soft tokens, one call per text length.

    Args:
        query: Queries of all columns, or of the soft tokens only.
        mask: Attention mask of the longest text and its soft tokens. If None, attention is causal.
        attend: Attention of a padded batch. Without a mask, the queries are the last positions, and causal.
    """
    suffix_len, parts = packing.suffix_len, []
    texts = key.shape[2] - packing.suffix_tokens  # columns
    if query.shape[2] > packing.suffix_tokens:
        for run in packing.runs:
            if run.length:
                own = slice(run.start, run.start + run.texts * run.length)
                corner = None if mask is None else mask[..., : run.length, : run.length]
                queries, keys, values = (_rows(each, own, run.texts) for each in (query, key, value))
                parts.append(attend(queries, keys, values, corner).flatten(0, 1))
    first_query = query.shape[2] - packing.suffix_tokens
    for run in packing.runs if suffix_len else ():
        own = slice(run.start, run.start + run.texts * run.length)
        soft = slice(run.first * suffix_len, (run.first + run.texts) * suffix_len)
        queries = _rows(query[:, :, first_query:], soft, run.texts)
        keys, values = (
            torch.cat([_rows(each, own, run.texts), _rows(each[:, :, texts:], soft, run.texts)], dim=2)
            for each in (key, value)
        )
        whole = run.length + suffix_len
        corner = None if mask is None else mask[..., run.length : whole, :whole]
        parts.append(attend(queries, keys, values, corner).flatten(0, 1))
    return torch.cat(parts).unsqueeze(0)


def varlen_attention(
    packing: Packing,
    query: Float[Tensor, "1 heads new head_dim"],
    key: Float[Tensor, "1 key_heads columns head_dim"],
    value: Float[Tensor, "1 key_heads columns head_dim"],
    *,
    scaling: float,
) -> Float[Tensor, "1 new heads head_dim"]:
    """Compute `packed_attention` without a mask in one call of FlashAttention's varlen kernel, on GPUs only."""
    from torch.nn.attention.varlen import varlen_attn  # slow import, needed on GPUs only

    attend: Any = varlen_attn  # returns only a tensor by default
    keys, values = (each[0].transpose(0, 1).index_select(0, packing.order) for each in (key, value))
    queries, cu_seqlens, max_seqlen = query[0].transpose(0, 1), packing.cu_seqlens, packing.max_seqlen
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), "enable_gqa": True}
    if query.shape[2] < key.shape[2]:  # the soft tokens alone
        suffix = packing.cu_seqlens_suffix
        out = attend(queries.contiguous(), keys, values, suffix, cu_seqlens, packing.suffix_len, max_seqlen, **options)
    else:
        queries = queries.index_select(0, packing.order)
        out = attend(queries, keys, values, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
        out = out.index_select(0, packing.inverse_order)
    return out.unsqueeze(0)


@cache
def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if torch has varlen FlashAttention here: GPUs since Ampere, in half precision."""
    if device.type != "cuda" or dtype.itemsize != 2 or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


def _rows(tensor: Tensor, columns: slice, texts: int) -> Float[Tensor, "texts heads length head_dim"]:
    """Reshape columns of a packed row to a batch of texts."""
    heads, head_dim = tensor.shape[1], tensor.shape[3]
    return tensor[0, :, columns].reshape(heads, texts, -1, head_dim).transpose(0, 1)


ATTENTION = "promptembedder"

_FEW = 32  # queries: above, the explicit attention weights take too much memory


def few_query_attention(
    query: Float[Tensor, "batch heads new head_dim"],
    key: Float[Tensor, "batch key_heads seq head_dim"],
    value: Float[Tensor, "batch key_heads seq head_dim"],
    *,
    mask: Bool[Tensor, "#batch 1 new seq"] | None,
    scaling: float,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads new head_dim"]:
    """Compute attention with explicit products, stacking query heads of a key head to avoid copies of keys and values.

    Args:
        mask: True where a query may attend. If None, the queries are the last positions, and causal.
        softcap: Limit of the scores, applied as softcap * tanh(score / softcap) (Gemma 2).
    """
    batch, heads, new, width = query.shape
    groups = heads // key.shape[1]
    stacked = query.reshape(batch, key.shape[1], groups * new, width)
    scores = (stacked @ key.transpose(2, 3)).float() * scaling  # [batch key_heads groups*new seq]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and new > 1:
        mask = torch.ones(1, 1, new, key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - new)
    if mask is not None:
        scores = scores.masked_fill(~mask.repeat(1, 1, groups, 1), torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).reshape(batch, heads, new, width)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the signature that transformers calls in each layer."""
    packing = current_packing()
    if packing is None:
        return _dispatch_attention(module, query, key, value, attention_mask, scaling, kwargs), None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if attention_mask is None and kwargs.get("softcap") is None and has_varlen(query.device, query.dtype):
        return varlen_attention(packing, query, key, value, scaling=scale), None

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        new, seq = query.shape[2], key.shape[2]
        if mask is None and 1 < new < seq:  # torch aligns them to the first keys
            mask = torch.ones(1, 1, new, seq, dtype=torch.bool, device=query.device).tril(seq - new)
        return _dispatch_attention(module, query, key, value, mask, scaling, kwargs)

    return packed_attention(packing, query, key, value, attention_mask, attend), None


def _dispatch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> Float[Tensor, "batch new heads head_dim"]:
    """Compute attention of a padded batch with the fastest kernel for its shape."""
    is_few = query.device.type == "cpu" and not torch.compiler.is_compiling() and _is_few(query, key)
    softcap = kwargs.get("softcap")
    if is_few or softcap is not None:  # torch's fused attention has no softcap
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if attention_mask is None and kwargs.get("is_causal") is False:  # bidirectional without padding
            attention_mask = query.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        output = few_query_attention(query, key, value, mask=attention_mask, scaling=scale, softcap=softcap)
        return output.transpose(1, 2).contiguous()
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[0]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build the attention mask for transformers. For a packed row, it is the mask of the longest text.

    Family-specific masks, such as sliding windows, apply to that text. Each other text uses the upper left corner.
    """
    packing = current_packing()
    if packing is None:
        return sdpa_mask(*args, **kwargs)
    length = packing.max_seqlen
    of_longest = {"batch_size": 1, "q_length": length, "kv_length": length, "attention_mask": None}
    return sdpa_mask(*args, **{**kwargs, **of_longest})


def _is_few(query: Tensor, key: Tensor) -> bool:
    """Return True if explicit products are faster. Without gradient and without earlier keys, the fused kernel is."""
    return query.shape[2] <= _FEW and (query.requires_grad or query.shape[2] < key.shape[2])


AttentionInterface.register(ATTENTION, _attention_forward)
AttentionMaskInterface.register(ATTENTION, _mask)
