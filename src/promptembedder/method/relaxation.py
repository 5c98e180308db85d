"""Continuous relaxations of generated tokens, and diagnostics of the resulting soft tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from promptembedder.errors import ConfigError, check_choice
from promptembedder.types import Float, Tensor

__all__ = [
    "RELAXATIONS",
    "Relaxation",
    "RelaxationConfig",
    "RelaxedTokens",
    "relax",
    "relaxation_weights",
    "soft_token_diagnostics",
]


@dataclass(frozen=True, kw_only=True)
class RelaxationConfig:
    """Relaxation from logits to a relaxed token.

    Attributes:
        kind: One of `RELAXATIONS`. `hidden`: the prompter's hidden state, without vocabulary weights.
        temperature: Divides the logits before the softmax; unitless, > 0. Not the contrastive temperature.
        top_k: Entries kept by the relaxation `top_k`; the others ignore it.
    """

    kind: str = "softmax"
    temperature: float = 1.0
    top_k: int = 64

    def __post_init__(self) -> None:
        check_choice("relaxation", self.kind, RELAXATIONS)
        if not self.temperature > 0:
            raise ConfigError(f"logit temperature must be > 0, got {self.temperature}. Try 1.0.")
        if self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {self.top_k}. Try 64.")

    @property
    def has_weights(self) -> bool:
        """True if there are vocabulary weights behind each token."""
        return RELAXATIONS[self.kind].weights is not None

    @property
    def is_dense(self) -> bool:
        """True if weights of low entropy are a fault, because no gradient passes through them."""
        return RELAXATIONS[self.kind].is_dense


@dataclass(frozen=True)
class RelaxedTokens:
    """K generated tokens in the prompter's input space, before the alignment."""

    embeddings: Float[Tensor, "batch prompt dim_p"]
    weights: Float[Tensor, "batch prompt vocab"] | None
    """Vocabulary weights behind each token, float32; None for the relaxation `hidden`."""
    offset: Float[Tensor, "prompt dim_p"] | None = None
    """The part of `embeddings` that is the same for every instruction and fixed; None if there is no such part."""

    @property
    def instructed(self) -> Float[Tensor, "batch prompt dim_p"]:
        """Share of `embeddings` that depends on the instruction, which is all that trained maps see."""
        return self.embeddings if self.offset is None else self.embeddings - self.offset

    @classmethod
    def cat(cls, batches: "Sequence[RelaxedTokens]", device: torch.device) -> "RelaxedTokens":
        """Concatenate batches along the batch axis, on `device`."""
        weights = [batch.weights for batch in batches if batch.weights is not None]
        embeddings = torch.cat([batch.embeddings for batch in batches]).to(device)
        offset = None if batches[0].offset is None else batches[0].offset.to(device)
        return cls(embeddings, torch.cat(weights).to(device) if weights else None, offset)

    def rows(self) -> "list[RelaxedTokens]":
        """Split the batch into batches of one row."""
        weights = [None] * len(self.embeddings) if self.weights is None else list(self.weights.split(1))
        rows = zip(self.embeddings.split(1), weights, strict=True)
        return [RelaxedTokens(row, weight, self.offset) for row, weight in rows]


def _softmax(logits: Float[Tensor, "*rows vocab"], config: RelaxationConfig, _: bool) -> Float[Tensor, "*rows vocab"]:
    return (logits / config.temperature).softmax(dim=-1)


def _top_k(logits: Float[Tensor, "*rows vocab"], config: RelaxationConfig, _: bool) -> Float[Tensor, "*rows vocab"]:
    top = logits.topk(min(config.top_k, logits.shape[-1]), dim=-1)
    weights = (top.values / config.temperature).softmax(dim=-1)
    return torch.zeros_like(logits).scatter(-1, top.indices, weights)


def _gumbel(
    logits: Float[Tensor, "*rows vocab"], config: RelaxationConfig, training: bool
) -> Float[Tensor, "*rows vocab"]:
    if not training:  # an embedding must not depend on chance
        return _softmax(logits, config, training)
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return ((logits - (-uniform.log()).log()) / config.temperature).softmax(dim=-1)


def _straight_through(
    logits: Float[Tensor, "*rows vocab"], config: RelaxationConfig, training: bool
) -> Float[Tensor, "*rows vocab"]:
    soft = _softmax(logits, config, training)
    hard = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order the forward value is exactly one-hot


@dataclass(frozen=True)
class Relaxation:
    """Entry of `RELAXATIONS`.

    Attributes:
        weights: Computes vocabulary weights from (logits, configuration, training). If None, the prompter's hidden
            state takes the place of the token.
        is_dense: As in `RelaxationConfig`.
    """

    weights: Callable[[Tensor, RelaxationConfig, bool], Tensor] | None
    is_dense: bool = False


RELAXATIONS = {
    "softmax": Relaxation(_softmax, is_dense=True),
    "top_k": Relaxation(_top_k),
    "gumbel": Relaxation(_gumbel),
    "straight_through": Relaxation(_straight_through),
    "hidden": Relaxation(None),
}


def relaxation_weights(
    logits: Float[Tensor, "*rows vocab"], config: RelaxationConfig, *, training: bool = False
) -> Float[Tensor, "*rows vocab"]:
    """Compute non-negative float32 weights that sum to one over the vocabulary.

    Args:
        training: Enables the noise of `gumbel`. The other relaxations are deterministic.

    Raises:
        ConfigError: If the relaxation has no weights (`hidden`).
    """
    weights = RELAXATIONS[config.kind].weights
    if weights is None:
        known = ", ".join(kind for kind, relaxation in RELAXATIONS.items() if relaxation.weights is not None)
        raise ConfigError(f"relaxation {config.kind!r} has no vocabulary weights. Use one of: {known}.")
    # float32: a bf16 softmax over 50 000 entries loses the tail, where much of the mass is
    return weights(logits.float(), config, training)


def relax(
    weights: Float[Tensor, "*rows vocab"], table: Float[Tensor, "vocab dim"], *, scale: float = 1.0
) -> Float[Tensor, "*rows dim"]:
    """Compute the expected input embedding under `weights`. One-hot weights at i give row i of `table`.

    This is the continuous relaxation of Tsai et al. 2026 (arXiv:2605.28066).

    Args:
        table: Input embedding weights.
        scale: Factor on the table before the first layer (Gemma: the square root of the width).
    """
    return scale * (weights.to(table.dtype) @ table)


@torch.no_grad()
def soft_token_diagnostics(
    tokens: RelaxedTokens, soft: Float[Tensor, "batch prompt dim_r"], *, mean_embedding_norm: float
) -> dict[str, float]:
    """Compute diagnostics of the soft tokens of a batch of instructions.

    - `soft_token_norm_ratio`: mean norm over that of the embedding table.
    - `soft_token_entropy`: mean entropy of the vocabulary weights in nats. Near log(vocab) the tokens are the mean of
      the table. Near 0 the softmax is one-hot, and no gradient flows through it. Missing without weights.
    - `soft_token_cosine`: mean cosine between the tokens of one instruction. Missing for a single token.
    - `instruction_cosine`: mean cosine between the tokens of different instructions at the same position. Near 1 the
      prompter has become a constant.
    - `instruction_variance`: share of the tokens' squared norm that is lost if each is replaced by its mean over the
      instructions, 0..1. Both are missing for a single instruction.
    """
    report: dict[str, float] = {"soft_token_norm_ratio": float(soft.float().norm(dim=-1).mean()) / mean_embedding_norm}
    if tokens.weights is not None:
        weights = tokens.weights.float()
        report["soft_token_entropy"] = float(torch.special.entr(weights.clamp_min(0.0)).sum(dim=-1).mean())
    unit = F.normalize(soft.float(), dim=-1)
    if soft.shape[1] > 1:
        report["soft_token_cosine"] = _mean_cosine(unit)
    if soft.shape[0] > 1:
        report["instruction_cosine"] = _mean_cosine(unit.transpose(0, 1))
        around = soft.float() - soft.float().mean(dim=0)
        report["instruction_variance"] = float(around.square().sum() / soft.float().square().sum().clamp_min(1e-12))
    return report


def _mean_cosine(unit: Float[Tensor, "groups members dim"]) -> float:
    """Return the mean cosine between different members of a group."""
    count = unit.shape[1]
    total = unit.sum(dim=1).square().sum(dim=-1)  # of all pairs, each member with itself included
    return float(((total - count) / (count * (count - 1))).mean())
