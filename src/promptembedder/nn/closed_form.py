"""Closed forms of a linear alignment: from rows that two spaces share, without training.

Row i of source and target spells the same string in two vocabularies; frequent strings may count more.
"""

from dataclasses import dataclass

import torch

from promptembedder.errors import ConfigError, shown
from promptembedder.shapes import Float, Tensor

__all__ = [
    "AlignmentConfig",
    "AlignmentFit",
    "LinearMap",
    "closed_form_fit",
    "closed_form_map",
    "procrustes_map",
    "random_map",
    "ridge_map",
]

KINDS = ("linear", "vocabulary")
STARTS = ("ridge", "procrustes", "random")


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Which alignment, and from where it starts.

    Attributes:
        kind: `linear`: a trained matrix; `vocabulary`: the weights on shared strings, no parameters.
        start: Closed form of the linear matrix: `ridge`, `procrustes`, or `random` as control.
        ridge: Ridge penalty relative to the mean squared singular value of the source; unitless, > 0.
        rank: Of the trained difference to the closed form; None trains a full matrix.
    """

    kind: str = "linear"
    start: str = "ridge"
    ridge: float = 1e-4
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown alignment {shown(self.kind)}. Use one of: {', '.join(KINDS)}.")
        if self.start not in STARTS:
            raise ConfigError(f"unknown alignment start {shown(self.start)}. Use one of: {', '.join(STARTS)}.")
        if not self.ridge > 0:
            raise ConfigError(f"alignment.ridge must be > 0, got {self.ridge}. Try 1e-4.")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"alignment.rank must be at least 1, got {self.rank}. Leave it out for a full matrix.")


@dataclass(frozen=True)
class LinearMap:
    """x -> x @ weight + bias, float32."""

    weight: Float[Tensor, "dim_p dim_r"]
    bias: Float[Tensor, " dim_r"]


@dataclass(frozen=True, kw_only=True)
class AlignmentFit:
    """How well a closed form carries the strings of one vocabulary to another's vectors.

    Attributes:
        shared_strings: Rows that it was fitted to.
        held_out_r2: Share of the target's variance that a fit to nine tenths of the rows explains of the others: 1 is
            exact, 0 no better than the target's mean.
        norm_ratio: Mean length of mapped rows over that of the target's, before lengths are matched.
    """

    shared_strings: int
    held_out_r2: float
    norm_ratio: float


def ridge_map(
    source: Float[Tensor, "rows dim_p"],
    target: Float[Tensor, "rows dim_r"],
    *,
    ridge: float = 1e-4,
    weights: Float[Tensor, " rows"] | None = None,
) -> LinearMap:
    """Least-squares map from `source` rows to `target` rows with a bias and a ridge penalty.

    Minimises sum_i w_i |(source_i - mean) W - (target_i - mean)|^2 + ridge * s |W|^2, s the mean squared singular value
    of the centred, weighted source; solved in float64. Up to the ridge, the identity where both sides are the same.
    """
    x, y, x_mean, y_mean, share = _centred(source, target, weights)
    gram = x.T @ (share * x)  # [dim_p, dim_p]
    penalty = ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + penalty * eye, x.T @ (share * y))
    return LinearMap(weight.float(), (y_mean - x_mean @ weight).float())


def procrustes_map(
    source: Float[Tensor, "rows dim_p"], target: Float[Tensor, "rows dim_r"], *, weights: Tensor | None = None
) -> LinearMap:
    """(Semi-)orthogonal map that best turns centred `source` rows into `target` rows, scaled to their norms."""
    x, y, x_mean, y_mean, share = _centred(source, target, weights)
    u, s, vt = torch.linalg.svd(x.T @ (share * y), full_matrices=False)
    weight = (u @ vt) * (s.sum() / (share * x.square()).sum())
    return LinearMap(weight.float(), (y_mean - x_mean @ weight).float())


def random_map(dim_p: int, dim_r: int, *, seed: int) -> LinearMap:
    """Xavier-normal weight and no bias: the control that knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(dim_p, dim_r, generator=generator, device=generator.device) * (2.0 / (dim_p + dim_r)) ** 0.5
    return LinearMap(weight, torch.zeros(dim_r, device=weight.device))


def closed_form_map(
    source: Float[Tensor, "rows dim_p"],
    target: Float[Tensor, "rows dim_r"],
    config: AlignmentConfig,
    *,
    seed: int,
    weights: Float[Tensor, " rows"] | None = None,
) -> LinearMap:
    """The start that `config.start` names, from the embeddings of shared strings, at their mean length.

    A map between spaces that do not quite fit shrinks what it maps; a token that is too short drowns in the output of
    the reader's first layer.
    """
    start = _start(source, target, weights, config, seed)
    factor = 1 / max(_norm_ratio(start, source, target), 1e-12)
    return LinearMap(start.weight * factor, start.bias * factor)


def closed_form_fit(
    source: Float[Tensor, "rows dim_p"],
    target: Float[Tensor, "rows dim_r"],
    config: AlignmentConfig,
    *,
    seed: int,
    weights: Float[Tensor, " rows"] | None = None,
) -> AlignmentFit:
    """How well that start fits the rows."""
    held_out = torch.zeros(len(source), dtype=torch.bool)
    held_out[torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[: len(source) // 10]] = True
    kept = None if weights is None else weights[~held_out]
    part = _start(source[~held_out], target[~held_out], kept, config, seed)
    return AlignmentFit(
        shared_strings=len(source),
        held_out_r2=_explained(part, source[held_out], target[held_out]),
        norm_ratio=_norm_ratio(_start(source, target, weights, config, seed), source, target),
    )


def _start(source: Tensor, target: Tensor, weights: Tensor | None, config: AlignmentConfig, seed: int) -> LinearMap:
    if config.start == "ridge":
        return ridge_map(source, target, ridge=config.ridge, weights=weights)
    if config.start == "procrustes":
        return procrustes_map(source, target, weights=weights)
    drawn = random_map(source.shape[1], target.shape[1], seed=seed)
    return LinearMap(drawn.weight.to(target.device), drawn.bias.to(target.device))


def _centred(
    source: Tensor, target: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Float[Tensor, "rows 1"]]:
    """Both sides around their weighted means, the means, and each row's share of the weight; float64."""
    x, y = source.double(), target.double()
    share = torch.ones(len(x), 1, dtype=x.dtype, device=x.device) if weights is None else weights.double().unsqueeze(1)
    share = share / share.sum()
    x_mean, y_mean = (share * x).sum(dim=0), (share * y).sum(dim=0)
    return x - x_mean, y - y_mean, x_mean, y_mean, share


def _norm_ratio(start: LinearMap, source: Tensor, target: Tensor) -> float:
    mapped = source.float() @ start.weight + start.bias
    return float(mapped.norm(dim=-1).mean() / target.float().norm(dim=-1).mean().clamp_min(1e-12))


def _explained(start: LinearMap, source: Tensor, target: Tensor) -> float:
    """R^2 on rows that the map was not fitted to; NaN without such rows."""
    if len(source) == 0:
        return float("nan")
    left = target.float() - (source.float() @ start.weight + start.bias)
    around = target.float() - target.float().mean(dim=0)
    return 1 - float(left.square().sum() / around.square().sum().clamp_min(1e-12))
