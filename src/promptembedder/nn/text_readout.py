"""What the text's own states say, beside what the soft tokens made of them."""

import torch
from torch import nn

from promptembedder.nn.pooling import unit_vectors
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["TextReadout"]


class TextReadout(nn.Module):
    """unit(summary) + weight * unit(text - centre); weight and centre are trained, the text's states never are.

    Contrastive training keeps of a summary what tells its pairs apart; the frozen text states keep the rest, which
    other tasks ask for. Mean states of a decoder share one large direction that says nothing about the text
    (Ethayarajh 2019, arXiv:1909.00512): `centre` takes it away.
    """

    def __init__(self, centre: Float[Tensor, " dim"], *, weight: float) -> None:
        """Start with this centre and weight."""
        super().__init__()
        self.centre = nn.Parameter(centre.clone())
        self.weight = nn.Parameter(torch.tensor(float(weight)))

    def forward(
        self, summary: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], present: Int[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch dim"]:
        """The sum, float32, not normalised.

        Args:
            summary: Pooled states of the soft tokens.
            text: Mean states of the text, float32.
            present: 1, or 0 for an empty text, which has nothing of its own to add.
        """
        return unit_vectors(summary) + self.weight * present * unit_vectors(text - self.centre)
