"""What the text's own states say, beside what the soft tokens made of them."""

import torch
from torch import nn

from promptembedder.nn.pooling import unit_vectors
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["TextReadout", "shared_directions"]

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
