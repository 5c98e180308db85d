"""Attention for a few queries over many keys: the shape of the suffix pass.

The fused kernels are made for long square attention, and they want every key head copied for each of its query heads.
When K soft tokens look at a text, the products written out take half their time on a CPU, a quarter in a backward pass.
So this function writes the products out for that case and leaves the rest to torch's fused attention.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from promptembedder.backbones.packing import current_packing, has_varlen, packed_attention, varlen_attention
from promptembedder.shapes import Bool, Float, Tensor

__all__ = ["ATTENTION", "few_query_attention"]

ATTENTION = "promptembedder"

_FEW = 32  # queries; beyond, the weights written out cost more memory than the fused kernel saves time


def few_query_attention(
    query: Float[Tensor, "batch heads new head_dim"],
    key: Float[Tensor, "batch key_heads seq head_dim"],
    value: Float[Tensor, "batch key_heads seq head_dim"],
    *,
    mask: Bool[Tensor, "#batch 1 new seq"] | None,
    scaling: float,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads new head_dim"]:
    """Plain attention; query heads that share a key head are stacked, so keys and values are not copied.

    Args:
        mask: True where a query may look. None: the queries are the last ones, and each looks at what is before it.
        softcap: Scores are squeezed into +-softcap by tanh (Gemma 2).
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
    """What transformers calls in each layer; the foreign keyword arguments are its own."""
    packing = current_packing()
    if packing is None:
        return _attended(module, query, key, value, attention_mask, scaling, kwargs), None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if attention_mask is None and kwargs.get("softcap") is None and has_varlen(query.device, query.dtype):
        return varlen_attention(packing, query, key, value, scaling=scale), None

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        new, seq = query.shape[2], key.shape[2]
        if mask is None and 1 < new < seq:  # what torch takes for the first ones
            mask = torch.ones(1, 1, new, seq, dtype=torch.bool, device=query.device).tril(seq - new)
        return _attended(module, query, key, value, mask, scaling, kwargs)

    return packed_attention(packing, query, key, value, attention_mask, attend), None


def _attended(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> Float[Tensor, "batch new heads head_dim"]:
    """Attention of an ordinary batch, in the way that is quickest for it."""
    is_few = query.device.type == "cpu" and not torch.compiler.is_compiling() and _is_few(query, key)
    softcap = kwargs.get("softcap")
    if is_few or softcap is not None:  # torch's fused attention knows no cap
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if attention_mask is None and kwargs.get("is_causal") is False:  # bidirectional, and nothing is padded
            attention_mask = query.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        output = few_query_attention(query, key, value, mask=attention_mask, scaling=scale, softcap=softcap)
        return output.transpose(1, 2).contiguous()
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[0]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """What transformers calls for the mask; that of a packed row is one for its longest text alone.

    A family's own rule of who may look at whom (a sliding window, say) is asked about that text; each other text has
    the upper left corner of the answer.
    """
    packing = current_packing()
    if packing is None:
        return sdpa_mask(*args, **kwargs)
    of_longest = {"batch_size": 1, "q_length": packing.longest, "kv_length": packing.longest, "attention_mask": None}
    return sdpa_mask(*args, **{**kwargs, **of_longest})


def _is_few(query: Tensor, key: Tensor) -> bool:
    """Whether products written out are quicker; without gradient the fused kernel is where no key comes before."""
    return query.shape[2] <= _FEW and (query.requires_grad or query.shape[2] < key.shape[2])


AttentionInterface.register(ATTENTION, _attention_forward)
AttentionMaskInterface.register(ATTENTION, _mask)
