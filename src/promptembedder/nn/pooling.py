"""From states to one unit vector a text."""

import torch
from torch.nn import functional as F

from promptembedder.shapes import Float, Int, Tensor

__all__ = ["POOLINGS", "pooled", "pooled_prefixes", "unit_vectors"]

POOLINGS = ("mean", "last")


def pooled(
    states: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"], *, pooling: str
) -> Float[Tensor, "batch dim"]:
    """Mean, or last, of the states where `mask` is 1; zeros for a row without any. float32.

    Args:
        pooling: One of `POOLINGS`.
    """
    states = states.float()
    weights = mask
    if pooling == "last":
        weights = mask * (mask.flip(1).cumsum(dim=1).flip(1) == 1)  # 1 where no token follows
    weights = weights.unsqueeze(-1).float()
    # where(), not a product: 0 * nan is nan, and a padded position may hold anything
    total = torch.where(weights > 0, states, 0.0).sum(dim=1)
    return total / weights.sum(dim=1).clamp_min(1.0)


def pooled_prefixes(states: Float[Tensor, "batch seq dim"], *, pooling: str) -> Float[Tensor, "batch seq dim"]:
    """What `pooled` makes of the first state, of the first two, and so on to all of them. float32.

    Args:
        pooling: One of `POOLINGS`.
    """
    states = states.float()
    if pooling == "last":
        return states
    return states.cumsum(dim=1) / torch.arange(1, states.shape[1] + 1, device=states.device).unsqueeze(-1)


def unit_vectors(vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """The vectors at length 1, float32; a zero vector stays zero."""
    return F.normalize(vectors.float(), dim=-1)
