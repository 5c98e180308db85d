"""Pooling of hidden states to one unit vector per text, whitened text states, and their pooling by an instruction."""

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
    "InstructionPooling",
    "InstructionQuery",
    "Pooling",
    "TextSummary",
    "WhitenedTextPooling",
    "content_mask",
    "l2_normalize",
    "pool",
    "pool_prefixes",
    "query_width",
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


@dataclass(frozen=True)
class TextSummary:
    """Results of the text pooling for a batch of texts that do not depend on the instruction.

    Attributes:
        whitened: Whitened mean states, float32.
        present: 1, or 0 for an empty text.
        projected: Keys and values of the tokens, or None if no instruction is read.
    """

    whitened: Float[Tensor, "batch dim"]
    present: Int[Tensor, "batch 1"]
    projected: "ProjectedTokens | None" = None


class WhitenedTextPooling(nn.Module):
    """Whitened mean text states added: unit(summary) + weight * unit(c - (c @ shared) @ shared.T), c = text - centre.

    Contrastive training keeps the features that distinguish its pairs. The frozen text states keep the remaining
    features, which other tasks need. Mean states of a decoder share one large direction that is independent of the text
    (Ethayarajh 2019, arXiv:1909.00512), which `centre` removes, and vary most along a few others, which `shared`
    shrinks (whitening, Su et al. 2021, arXiv:2103.15316, of the first `rank` directions). Both are fitted to unlabelled
    texts.

    With `heads`, an instruction decides what is added: see `InstructionPooling`.
    """

    centre: Tensor
    weight: Tensor
    shared: Tensor
    instructed: "InstructionPooling | None"

    def __init__(
        self, centre: Float[Tensor, " dim"], *, weight: float, rank: int, heads: int = 0, seed: int = 0
    ) -> None:
        """Initialise with this centre and weight. No direction is shrunk before `fit`.

        Args:
            heads: Attention heads of an instruction. 0: the text states are the same under every instruction.
            seed: Draws the initial weights of the instruction pooling.
        """
        super().__init__()
        self.register_buffer("centre", centre.clone())
        self.register_buffer("weight", torch.tensor(float(weight)))
        rank = min(rank, len(centre) - 1)
        self.register_buffer("shared", centre.new_zeros(len(centre), rank), persistent=rank > 0)
        self.instructed = InstructionPooling(len(centre), heads=heads, seed=seed) if heads else None

    @torch.no_grad()
    def fit(self, texts: Float[Tensor, "texts dim"], tokens: Float[Tensor, "tokens dim"] | None = None) -> None:
        """Fit centre and shared directions to the mean states of some texts.

        Args:
            tokens: States of tokens of these texts, to which the instruction pooling is fitted.
        """
        centre, shared = whitening_directions(texts, rank=self.shared.shape[1])
        self.centre.copy_(centre)
        self.shared.copy_(shared)
        if self.instructed is not None and tokens is not None:
            self.instructed.fit(tokens)

    def summarise(self, states: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"]) -> TextSummary:
        """Compute what depends on the texts alone: once for any number of instructions.

        Args:
            states: Hidden states of the texts.
            mask: 1 for a token of the content.
        """
        present = mask.amax(dim=1, keepdim=True) if mask.shape[1] else mask.new_zeros(mask.shape[0], 1)
        whitened = self.whitened_mean(states, mask)
        if self.instructed is None:
            return TextSummary(whitened, present)
        projected = self.instructed.project(self.instructed.reduce(states, mask), mask, whitened)
        return TextSummary(whitened, present, projected)

    def whitened_mean(
        self, states: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch dim"]:
        """Compute the whitened mean states of texts, in float32."""
        own = pool(states, mask, pooling="mean") - self.centre
        return own - (own @ self.shared) @ self.shared.T

    def forward(
        self,
        summary: Float[Tensor, "batch dim"],
        text: TextSummary,
        query: Float[Tensor, "rows width"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Compute the sum, in float32, without normalising it.

        Args:
            summary: Pooled states of the soft tokens.
            text: What `summarise` returned.
            query: Query of each text's instruction, or one row for all. Needed with `heads`.
        """
        own = text.whitened
        if self.instructed is not None:
            assert query is not None
            assert text.projected is not None
            own = self.instructed(text.projected, query)
        return l2_normalize(summary) + self.weight * text.present * l2_normalize(own)


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


_HEAD_DIM = 64
_TOKEN_DIM = 256  # principal directions of the token states that keys and values are computed from
_HIDDEN = 512
_QUERY_HIDDEN = 128


@dataclass(frozen=True)
class ProjectedTokens:
    """Keys and values of the tokens of a batch of texts, and what the mean state contributes to the hidden units."""

    keys: Float[Tensor, "batch seq heads head_dim"]
    values: Float[Tensor, "batch seq heads head_dim"]
    mean: Float[Tensor, "batch hidden"]
    mask: Int[Tensor, "batch seq"]


class InstructionPooling(nn.Module):
    """Attention pooling of frozen text states under the query of an instruction, and a perceptron on what it finds.

    Each instruction has, from `InstructionQuery`, a query q for each head, and factors and offsets (f, o) for the
    hidden units (FiLM, Perez et al. 2018, arXiv:1709.07871). With keys k_t and values v_t of the tokens and the mean
    state c (whitened), the result is
    out(gelu((mean(c) + attended(sum_t softmax_t(q k_t / sqrt(d)) v_t)) * (1 + f) + o)).
    Keys, values and mean(c) do not depend on the instruction: many instructions share one pass over a text.

    Keys and values are computed from the whitened principal directions of the token states, fitted to unlabelled texts.
    """

    centre: Tensor
    directions: Float[Tensor, "dim reduced"]

    def __init__(self, dim: int, *, heads: int, seed: int = 0) -> None:
        """Initialise the trained maps; `seed` draws them."""
        super().__init__()
        self.heads, reduced, width = heads, min(_TOKEN_DIM, dim), heads * _HEAD_DIM
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int) -> nn.Parameter:
            # the generator's device, not the default one: a generator draws on its device only
            return nn.Parameter(torch.randn(rows, columns, generator=generator, device=generator.device) / rows**0.5)

        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("directions", torch.eye(dim, reduced))
        self.key, self.value = drawn(reduced, width), drawn(reduced, width)
        self.attended, self.mean = drawn(width, _HIDDEN), drawn(dim, _HIDDEN)
        self.mean_bias = nn.Parameter(torch.zeros(_HIDDEN))
        self.out, self.out_bias = drawn(_HIDDEN, dim), nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def fit(self, tokens: Float[Tensor, "tokens dim"]) -> None:
        """Fit the centre and the whitened principal directions to states of some tokens."""
        states = tokens.double()
        self.centre.copy_(states.mean(dim=0))
        scale = states.std(dim=0).clamp_min(1e-4)  # a decoder has dimensions of a hundred times the others' variance
        states = (states - states.mean(dim=0)) / scale
        variances, directions = torch.linalg.eigh(states.T @ states / len(states))  # ascending
        variances = variances.clamp_min(0) + _SHRINKAGE * variances.clamp_min(0).mean()
        kept = self.directions.shape[1]
        whitened = directions[:, -kept:] / variances[-kept:].sqrt() / scale.unsqueeze(1)
        self.directions.copy_(whitened)

    def reduce(
        self, states: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq reduced"]:
        """Map token states to the principal directions, float32; zeros where `mask` is 0."""
        reduced = (states.float() - self.centre) @ self.directions
        return torch.where(mask.unsqueeze(-1) > 0, reduced, 0.0)  # padding may contain anything

    def project(
        self,
        reduced: Float[Tensor, "batch seq reduced"],
        mask: Int[Tensor, "batch seq"],
        whitened: Float[Tensor, "batch dim"],
    ) -> ProjectedTokens:
        """Compute keys and values of the tokens, and the mean state's part of the hidden units."""
        shape = (*reduced.shape[:2], self.heads, _HEAD_DIM)
        mean = F.rms_norm(whitened, whitened.shape[-1:]) @ self.mean + self.mean_bias
        return ProjectedTokens((reduced @ self.key).view(shape), (reduced @ self.value).view(shape), mean, mask)

    def forward(self, text: ProjectedTokens, query: Float[Tensor, "rows width"]) -> Float[Tensor, "batch dim"]:
        """Pool each text under its own query, or all texts under one, float32."""
        width = self.heads * _HEAD_DIM
        queries, factors, offsets = query[:, : width + 2 * _HIDDEN].split([width, _HIDDEN, _HIDDEN], dim=1)
        queries = queries.expand(text.mask.shape[0], -1).unflatten(1, (self.heads, _HEAD_DIM))
        scores = torch.einsum("bhd,bthd->bht", queries, text.keys) / _HEAD_DIM**0.5
        # a large number, not infinity: an empty text has no token at all
        weights = scores.masked_fill(text.mask.unsqueeze(1) == 0, -1e9).softmax(dim=-1)
        found = torch.einsum("bht,bthd->bhd", weights, text.values).flatten(1)
        hidden = (text.mean + found @ self.attended) * (1 + factors) + offsets
        return F.gelu(hidden) @ self.out + self.out_bias


def query_width(heads: int, *, prompt: int) -> int:
    """Return the number of columns that a query takes beside each of `prompt` soft tokens."""
    return math.ceil((heads * _HEAD_DIM + 2 * _HIDDEN) / prompt) if heads else 0


class InstructionQuery(nn.Module):
    """Query of an instruction for the text states, computed from what the prompter generated for it.

    A two-layer perceptron over all K tokens, up(gelu(down(rms_norm(tokens)))): queries of the heads, then factors and
    offsets of the hidden units, at first zero.
    """

    def __init__(self, *, dim_p: int, prompt: int, heads: int, seed: int = 0) -> None:
        """Initialise the trained maps; `seed` draws them."""
        super().__init__()
        self.width = query_width(heads, prompt=prompt)
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(prompt * dim_p, _QUERY_HIDDEN, generator=generator, device=generator.device)
        up = torch.randn(_QUERY_HIDDEN, prompt * self.width, generator=generator, device=generator.device)
        up[:, heads * _HEAD_DIM :] = 0
        self.down = nn.Parameter(down / (prompt * dim_p) ** 0.5)
        self.down_bias = nn.Parameter(torch.zeros(_QUERY_HIDDEN))
        self.up = nn.Parameter(up / _QUERY_HIDDEN**0.5)
        self.up_bias = nn.Parameter(torch.zeros(prompt * self.width))

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Compute the query, float32, distributed over the K tokens so that it is stored beside them."""
        unit = F.rms_norm(tokens.instructed.float(), tokens.embeddings.shape[-1:])
        hidden = F.gelu(unit.flatten(1) @ self.down + self.down_bias)
        return (hidden @ self.up + self.up_bias).unflatten(1, (-1, self.width))
