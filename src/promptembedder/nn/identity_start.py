"""Trained maps that change nothing at first: a model with one starts as the model without it."""

import torch
from torch import nn
from torch.nn import functional as F

from promptembedder.nn.relaxation import RelaxedTokens
from promptembedder.shapes import Float, Tensor

__all__ = ["DeepAlignment", "IdentityStartLinear"]


class IdentityStartLinear(nn.Module):
    """x -> u + u @ weight + bias, u = x at root mean square 1; weight and bias start at zero."""

    def __init__(self, dim: int) -> None:
        """A map of `dim` wide vectors."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The mapped vectors, float32; not normalised."""
        unit = F.rms_norm(vectors.float(), vectors.shape[-1:])
        return unit + unit @ self.weight + self.bias


class DeepAlignment(nn.Module):
    """One linear alignment a deeper layer: what a relaxed token adds to its own state where it enters that layer.

    All start at zero, so training begins at the model whose soft tokens enter at the input alone. Deep prompts are
    those of P-tuning v2 (Liu et al. 2022, arXiv:2110.07602); here they are made from the generated tokens, come after
    the text, and so leave the text's states alone.
    """

    def __init__(self, *, dim_p: int, dim_r: int, depths: int, prompt: int) -> None:
        """Maps for `depths` layers and `prompt` soft tokens."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(depths, dim_p, dim_r))
        self.bias = nn.Parameter(torch.zeros(depths, prompt, dim_r))

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Additions for each depth side by side, width = depths * dim_r, float32."""
        unit = F.rms_norm(tokens.embeddings.float(), tokens.embeddings.shape[-1:])
        additions = torch.einsum("bkp,lpr->bklr", unit, self.weight) + self.bias.transpose(0, 1)
        return additions.flatten(2)
