"""Alignment: from the prompter's input space to the reader's.

The closed-form start maps strings that both vocabularies hold onto each other; training then adds a difference `delta`
that weight decay pulls back to zero, so that instructions unseen in training keep the closed-form behaviour.
"""

import torch
from torch import nn

from promptembedder.errors import ConfigError
from promptembedder.nn.closed_form import LinearMap
from promptembedder.nn.relaxation import RelaxedTokens, relaxed_token
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["LinearAlignment", "VocabularyAlignment", "norm_match"]


def norm_match(vectors: Float[Tensor, "*rows dim"], norm: Float[Tensor, ""] | float) -> Float[Tensor, "*rows dim"]:
    """The vectors at length `norm`: what a token of the reader's own table has on average.

    Averages of many rows shrink towards the table's mean; left as they are, the first layer's output drowns them.
    """
    return norm * vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


class LinearAlignment(nn.Module):
    """z = e @ (base + delta) + bias; base fixed, the rest trained. float32.

    With a rank, delta = down @ up, whose way down starts at random.

    Weight decay pulls `delta` to zero, that is back to the closed form. The length of z is left free: in training, soft
    tokens grow to several times the length of a table row, and holding them to it made training slow and unsteady.
    """

    base: Tensor

    def __init__(self, start: LinearMap, *, rank: int | None = None, seed: int = 0) -> None:
        """Start at the closed form `start`; of a low rank, the way down is drawn from `seed`."""
        super().__init__()
        # laid out in memory as loading lays it out: a product of other strides may differ in its last bits
        self.register_buffer("base", start.weight.clone(memory_format=torch.contiguous_format))
        self.rank = None if rank is None else min(rank, *start.weight.shape)
        if self.rank is None:
            self.delta = nn.Parameter(torch.zeros(start.weight.shape, device=start.weight.device))
        else:
            dim_p, dim_r = start.weight.shape
            generator = torch.Generator().manual_seed(seed)
            down = torch.randn(dim_p, self.rank, generator=generator, device=generator.device)
            self.down = nn.Parameter((down / self.rank**0.5).to(start.weight.device))
            self.up = nn.Parameter(start.weight.new_zeros(self.rank, dim_r))
        self.bias = nn.Parameter(start.bias.clone())

    @property
    def dim_p(self) -> int:
        """Width of the prompter's input space."""
        return self.base.shape[0]

    @property
    def dim_r(self) -> int:
        """Width of the reader's input space."""
        return self.base.shape[1]

    @property
    def weight(self) -> Float[Tensor, "dim_p dim_r"]:
        """The whole matrix: closed form and what training added."""
        return self.base + (self.delta if self.rank is None else self.down @ self.up)

    @torch.no_grad()
    def settle(self) -> None:
        """Make what was trained the fixed part: the same map, from which a later training would start."""
        self.base.copy_(self.weight)
        (self.delta if self.rank is None else self.up).zero_()

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt dim_r"]:
        """Soft tokens in the reader's input space, float32."""
        return tokens.embeddings.float() @ self.weight + self.bias


class VocabularyAlignment(nn.Module):
    """z = norm_match(p restricted to shared strings @ reader's table); nothing to train.

    The table belongs to the reader and is passed in, so that it is neither copied nor saved here.
    """

    source_ids: Tensor
    target_ids: Tensor
    norm: Tensor

    def __init__(self, source_ids: Int[Tensor, " shared"], target_ids: Int[Tensor, " shared"], *, norm: float) -> None:
        """`source_ids[i]` of the prompter and `target_ids[i]` of the reader spell the same string."""
        super().__init__()
        self.register_buffer("source_ids", source_ids.clone())
        self.register_buffer("target_ids", target_ids.clone())
        self.register_buffer("norm", torch.tensor(float(norm)))

    def forward(
        self, tokens: RelaxedTokens, table: Float[Tensor, "vocab dim_r"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Soft tokens in the reader's input space, float32.

        Raises:
            ConfigError: The tokens have no vocabulary weights (relaxation `hidden`).
        """
        if tokens.weights is None:
            raise ConfigError(
                "alignment 'vocabulary' needs vocabulary weights, relaxation 'hidden' has none. Use linear."
            )
        shared = tokens.weights.index_select(-1, self.source_ids)
        shared = shared / shared.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return norm_match(relaxed_token(shared, table.index_select(0, self.target_ids)).float(), self.norm)
