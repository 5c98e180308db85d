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

    def forward(self, vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """The mapped vectors, float32; not normalised."""
        unit = F.rms_norm(vectors.float(), vectors.shape[-1:])
        return unit + unit @ self.weight + self.bias


class DeepAlignment(nn.Module):
    """One linear alignment a deeper layer: what a relaxed token adds to its own state where it enters that layer.

    A map is `down @ up[layer]`: the way down to `rank` numbers is shared, for there are few distinct tokens, and a full
    matrix a layer would be most of a saved model. All start at zero, so training begins at the model whose soft tokens
    enter at the input alone. Deep prompts are those of P-tuning v2 (Liu et al. 2022, arXiv:2110.07602); here they are
    made from the generated tokens, come after the text, and so leave the text's states alone.
    """

    def __init__(self, *, dim_p: int, dim_r: int, depths: int, prompt: int, rank: int, seed: int = 0) -> None:
        """Maps for `depths` layers and `prompt` soft tokens; the way down starts at random, drawn from `seed`."""
        super().__init__()
        rank = min(rank, dim_p)
        generator = torch.Generator().manual_seed(seed)
        # the generator's device and not the default one: it draws nowhere else
        down = torch.randn(dim_p, rank, generator=generator, device=generator.device)
        # the factor dim_p / rank makes a step of the optimiser move the output as far as one of a full matrix would
        self.down = nn.Parameter(down * dim_p**0.5 / rank)
        self.up = nn.Parameter(torch.zeros(depths, rank, dim_r))
        self.bias = nn.Parameter(torch.zeros(depths, prompt, dim_r))

    @torch.no_grad()
    def settle(self) -> None:
        """Round every number to one that bfloat16 holds, so that a file can keep it in half the bytes."""
        for weight in self.parameters():
            weight.copy_(weight.bfloat16())

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Additions for each depth side by side, width = depths * dim_r, float32."""
        unit = F.rms_norm(tokens.embeddings.float(), tokens.embeddings.shape[-1:])
        additions = torch.einsum("bkp,lpr->bklr", unit @ self.down, self.up) + self.bias.transpose(0, 1)
        return additions.flatten(2)
