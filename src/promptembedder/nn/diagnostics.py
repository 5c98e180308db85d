"""Numbers that show whether the soft tokens are alive.

Known failures: entropy near log(vocab) or cosine near 1 between tokens is collapse to the table's mean; entropy near 0
is a one-hot softmax, through which no gradient flows.
"""

import torch

from promptembedder.nn.pooling import unit_vectors
from promptembedder.nn.relaxation import RelaxedTokens
from promptembedder.shapes import Float, Tensor

__all__ = ["soft_token_diagnostics"]


@torch.no_grad()
def soft_token_diagnostics(
    tokens: RelaxedTokens, soft: Float[Tensor, "batch prompt dim_r"], *, table_norm: float
) -> dict[str, float]:
    """`soft_token_entropy` (nats, mean), `soft_token_norm_ratio` (to the table), `soft_token_cosine` (between tokens).

    Entropy is left out where the relaxation has no weights, cosine where there is one token only.
    """
    report: dict[str, float] = {"soft_token_norm_ratio": float(soft.float().norm(dim=-1).mean()) / table_norm}
    if tokens.weights is not None:
        weights = tokens.weights.float()
        report["soft_token_entropy"] = float(torch.special.entr(weights.clamp_min(0.0)).sum(dim=-1).mean())
    count = soft.shape[1]
    if count > 1:
        unit = unit_vectors(soft)
        cosines = unit @ unit.transpose(1, 2)  # [batch, prompt, prompt]
        off_diagonal = cosines.sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(dim=1)
        report["soft_token_cosine"] = float((off_diagonal / (count * (count - 1))).mean())
    return report
