"""Pooling of hidden states to one unit vector per text, whitening of the text's mean state, and its gate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from promptembedder.backbone import Backbone
from promptembedder.method.relaxation import RelaxedTokens
from promptembedder.types import Float, Int, Tensor

__all__ = [
    "POOLINGS",
    "InstructionGate",
    "Pooling",
    "WhitenedTextPooling",
    "content_mask",
    "l2_normalize",
    "pool",
    "pool_prefixes",
    "whitening_directions",
]


@dataclass(frozen=True)
class Pooling:
    """Entry of `POOLINGS`.

    Attributes:
        weights: Computes the weight of each position from a mask, [batch seq], such as 1 for those that count.
        prefixes: Pools each prefix of float32 states [batch seq dim]: the first, the first two, up to all of them.
        content_only: Pools the content of a text without its template and BOS, where both are in the sequence.
    """

    weights: Callable[[Tensor], Tensor]
    prefixes: Callable[[Tensor], Tensor]
    content_only: bool


def _last(mask: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    return mask * (mask.flip(1).cumsum(dim=1).flip(1) == 1)  # 1 where no token follows


def _running_mean(states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
    return states.cumsum(dim=1) / torch.arange(1, states.shape[1] + 1, device=states.device).unsqueeze(-1)


POOLINGS = {
    "mean": Pooling(weights=lambda mask: mask, prefixes=_running_mean, content_only=True),
    "last": Pooling(weights=_last, prefixes=lambda states: states, content_only=False),
}


def pool(
    states: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"], *, pooling: str
) -> Float[Tensor, "batch dim"]:
    """Compute the weighted mean of the states where `mask` is 1. Zeros for a fully masked row; float32.

    Args:
        pooling: One of `POOLINGS`.
    """
    states = states.float()
    weights = POOLINGS[pooling].weights(mask).unsqueeze(-1).float()
    # where(), not a product: 0 * nan is nan, and a padded position may contain anything
    total = torch.where(weights > 0, states, 0.0).sum(dim=1)
    return total / weights.sum(dim=1).clamp_min(1.0)


def pool_prefixes(states: Float[Tensor, "batch seq dim"], *, pooling: str) -> Float[Tensor, "batch seq dim"]:
    """Pool each prefix of the states: the first, the first two, up to all of them. float32.

    Args:
        pooling: One of `POOLINGS`.
    """
    return POOLINGS[pooling].prefixes(states.float())


def l2_normalize(vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Normalise the vectors to length 1, in float32. A zero vector stays zero."""
    return F.normalize(vectors.float(), dim=-1)


def content_mask(mask: Int[Tensor, "batch seq"], reader: Backbone) -> Int[Tensor, "batch seq"]:
    """Return `mask` with zeros at the tokens that start every text."""
    return mask * (mask.cumsum(dim=1) > len(reader.tokenizer.prefix))


_SHRINKAGE = 0.1  # fraction of the mean variance; small variances estimated from a few hundred texts are mostly noise


class WhitenedTextPooling(nn.Module):
    """Whitened mean text states added: unit(summary) + weight * unit(c - (c @ shared) @ shared.T), c = text - centre.

    Contrastive training keeps the features that distinguish its pairs. The frozen text states keep the remaining
    features, which other tasks need. Mean states of a decoder share one large direction that is independent of the text
    (Ethayarajh 2019, arXiv:1909.00512), which `centre` removes, and vary most along a few others, which `shared`
    shrinks (whitening, Su et al. 2021, arXiv:2103.15316, of the first `rank` directions). Both are fitted to unlabelled
    texts.

    With gate values g of an instruction, the whitened state w becomes w + (g * (w @ directions)) @ directions.T: a
    metric of its own for each instruction, in which texts that agree in what it asks for are near. The directions are
    trained.
    """

    centre: Tensor
    weight: Tensor
    shared: Tensor
    directions: nn.Parameter | None

    def __init__(self, centre: Float[Tensor, " dim"], *, weight: float, rank: int, gate_rank: int = 0) -> None:
        """Initialise with this centre and weight. No direction is shrunk before `fit`.

        Args:
            gate_rank: Number of directions that an instruction scales, at first those of the first coordinates.
        """
        super().__init__()
        self.directions = nn.Parameter(torch.eye(len(centre), gate_rank)) if gate_rank else None
        self.register_buffer("centre", centre.clone())
        self.register_buffer("weight", torch.tensor(float(weight)))
        rank = min(rank, len(centre) - 1)
        self.register_buffer("shared", centre.new_zeros(len(centre), rank), persistent=rank > 0)

    @torch.no_grad()
    def fit(self, texts: Float[Tensor, "texts dim"]) -> None:
        """Fit centre and shared directions to the mean states of some texts."""
        centre, shared = whitening_directions(texts, rank=self.shared.shape[1])
        self.centre.copy_(centre)
        self.shared.copy_(shared)

    def forward(
        self,
        summary: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        present: Int[Tensor, "batch 1"],
        gate: Float[Tensor, "rows rank"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Compute the sum, in float32, without normalising it.

        Args:
            summary: Pooled states of the soft tokens.
            text: Mean states of the text, float32.
            present: 1, or 0 for an empty text, which adds nothing.
            gate: Gate values of each text's instruction, or one row for all. If None, no direction is scaled.
        """
        whitened = self.whiten(text, gate)
        return l2_normalize(summary) + self.weight * present * l2_normalize(whitened)

    def whiten(
        self, text: Float[Tensor, "batch dim"], gate: Float[Tensor, "rows rank"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Whiten the mean states of texts and scale their directions by the gate values, in float32."""
        whitened = text - self.centre
        whitened = whitened - (whitened @ self.shared) @ self.shared.T
        if gate is None:
            return whitened
        assert self.directions is not None
        return whitened + (gate * (whitened @ self.directions)) @ self.directions.T


def whitening_directions(
    texts: Float[Tensor, "texts dim"], *, rank: int
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim rank"]]:
    """Compute the mean, and F such that c - (c @ F) @ F.T has equal variance along the first `rank` directions.

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


_GATE_HIDDEN = 128


class InstructionGate(nn.Module):
    """Gate values g(s) of an instruction, computed from what the prompter generated for it.

    A two-layer perceptron over all K tokens, g = up(gelu(down(rms_norm(tokens)))). `up` is initialised to zero: an
    untrained gate leaves the text states as they are.
    """

    def __init__(self, *, dim_p: int, prompt: int, rank: int, seed: int = 0) -> None:
        """Initialise the gate of `rank` directions; `seed` draws the first layer."""
        super().__init__()
        self.width = math.ceil(rank / prompt)  # gate values beside each soft token
        generator = torch.Generator().manual_seed(seed)
        # the generator's device, not the default one: a generator draws on its device only
        down = torch.randn(prompt * dim_p, _GATE_HIDDEN, generator=generator, device=generator.device)
        self.down = nn.Parameter(down / (prompt * dim_p) ** 0.5)
        self.down_bias = nn.Parameter(torch.zeros(_GATE_HIDDEN))
        self.up = nn.Parameter(torch.zeros(_GATE_HIDDEN, prompt * self.width))
        self.up_bias = nn.Parameter(torch.zeros(prompt * self.width))

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Compute the gate values, float32, distributed over the K tokens so that they are stored beside them."""
        unit = F.rms_norm(tokens.instructed.float(), tokens.embeddings.shape[-1:])
        hidden = F.gelu(unit.flatten(1) @ self.down + self.down_bias)
        return (hidden @ self.up + self.up_bias).unflatten(1, (-1, self.width))
