"""Pooling of hidden states to one unit vector per text, and whitening of the text's own mean state."""

import torch
from torch.nn import functional as F
from promptembedder.types import Float, Int, Tensor
from torch import nn

__all__ = ['POOLINGS', 'TextReadout', 'pooled', 'pooled_prefixes', 'shared_directions', 'unit_vectors']

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


_SHRINKAGE = 0.1  # of the mean variance; what a few hundred texts say about small variances is mostly noise


class TextReadout(nn.Module):
    """unit(summary) + weight * unit(own), own = c - (c @ shared) @ shared.T with c = text - centre.

    Contrastive training keeps of a summary what tells its pairs apart; the frozen text states keep the rest, which
    other tasks ask for. Mean states of a decoder share one large direction that says nothing about the text
    (Ethayarajh 2019, arXiv:1909.00512), which `centre` takes away, and vary most along a few others, whatever the text
    says: `shared` shrinks those (whitening, Su et al. 2021, arXiv:2103.15316, of the first `rank` directions). Both
    are fitted to some texts, without labels; nothing here is trained.
    """

    centre: Tensor
    weight: Tensor
    shared: Tensor

    def __init__(self, centre: Float[Tensor, " dim"], *, weight: float, rank: int) -> None:
        """Start with this centre and weight, and no direction shrunk."""
        super().__init__()
        self.register_buffer("centre", centre.clone())
        self.register_buffer("weight", torch.tensor(float(weight)))
        rank = min(rank, len(centre) - 1)
        self.register_buffer("shared", centre.new_zeros(len(centre), rank), persistent=rank > 0)

    @torch.no_grad()
    def fit(self, texts: Float[Tensor, "texts dim"]) -> None:
        """Take centre and shared directions from the mean states of some texts."""
        centre, shared = shared_directions(texts, rank=self.shared.shape[1])
        self.centre.copy_(centre)
        self.shared.copy_(shared)

    def forward(
        self, summary: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], present: Int[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch dim"]:
        """The sum, float32, not normalised.

        Args:
            summary: Pooled states of the soft tokens.
            text: Mean states of the text, float32.
            present: 1, or 0 for an empty text, which has nothing of its own to add.
        """
        own = text - self.centre
        own = own - (own @ self.shared) @ self.shared.T
        return unit_vectors(summary) + self.weight * present * unit_vectors(own)


def shared_directions(
    texts: Float[Tensor, "texts dim"], *, rank: int
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim rank"]]:
    """Mean of the texts, and F such that c - (c @ F) @ F.T has the same variance along the first `rank` directions.

    With eigenvectors U and eigenvalues v of the covariance, v raised by a tenth of their mean, and r the mean of those
    beyond `rank`: F = U * sqrt(1 - sqrt(r / v)), so what is left along each direction has variance r. Fewer texts than
    `rank` span fewer directions; the columns of the others are zero.
    """
    states = texts.double()
    centre = states.mean(dim=0)
    states = states - centre
    variances, directions = torch.linalg.eigh(states.T @ states / max(len(states), 1))  # ascending
    variances = variances.clamp_min(0)
    variances = variances + _SHRINKAGE * variances.mean()
    rest = variances[: len(variances) - rank].mean()
    largest, along = variances[len(variances) - rank :], directions[:, len(variances) - rank :]
    kept = torch.where(largest > rest, (rest / largest.clamp_min(1e-30)).sqrt(), torch.ones_like(largest))
    return centre.float(), (along * (1 - kept).sqrt()).float()
