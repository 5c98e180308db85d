"""Alignment: from the prompter's input space to the reader's.

The closed-form start maps strings that both vocabularies hold onto each other; training then adds a difference `delta`
that weight decay pulls back to zero, so that instructions unseen in training keep the closed-form behaviour.
"""

from dataclasses import dataclass

import torch
from torch import nn

from promptembedder.errors import ConfigError
from promptembedder.nn.relaxation import RelaxedTokens, relaxed_token
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["AlignmentConfig", "LinearAlignment", "LinearMap", "VocabularyAlignment", "norm_match", "ridge_map"]

KINDS = ("linear", "vocabulary")
STARTS = ("ridge", "procrustes", "random")


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Which alignment, and from where it starts.

    Attributes:
        kind: `linear`: a trained matrix; `vocabulary`: the weights on shared strings, no parameters.
        start: Closed form of the linear matrix: `ridge`, `procrustes`, or `random` as control.
        ridge: Ridge penalty relative to the mean squared singular value of the source; unitless, > 0.
    """

    kind: str = "linear"
    start: str = "ridge"
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown alignment {self.kind!r}. Use one of: {', '.join(KINDS)}.")
        if self.start not in STARTS:
            raise ConfigError(f"unknown alignment start {self.start!r}. Use one of: {', '.join(STARTS)}.")
        if not self.ridge > 0:
            raise ConfigError(f"alignment.ridge must be > 0, got {self.ridge}. Try 1e-4.")


@dataclass(frozen=True)
class LinearMap:
    """x -> x @ weight + bias, float32."""

    weight: Float[Tensor, "dim_p dim_r"]
    bias: Float[Tensor, " dim_r"]


def ridge_map(
    source: Float[Tensor, "rows dim_p"], target: Float[Tensor, "rows dim_r"], *, ridge: float = 1e-4
) -> LinearMap:
    """Least-squares map from `source` rows to `target` rows with a bias and a ridge penalty.

    Minimises |(source - mean) W - (target - mean)|^2 + ridge * s |W|^2, s the mean squared singular value of the
    centred source; solved in float64. The identity, up to the ridge, where source and target are the same.
    """
    x, y = source.double(), target.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x  # [dim_p, dim_p]
    penalty = ridge * gram.diagonal().mean()
    weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), x.T @ y)
    return LinearMap(weight.float(), (y_mean - x_mean @ weight).float())


def procrustes_map(source: Float[Tensor, "rows dim_p"], target: Float[Tensor, "rows dim_r"]) -> LinearMap:
    """(Semi-)orthogonal map that best turns centred `source` rows into `target` rows, scaled to their norms."""
    x, y = source.double(), target.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    u, s, vt = torch.linalg.svd((x - x_mean).T @ (y - y_mean), full_matrices=False)
    weight = (u @ vt) * (s.sum() / (x - x_mean).square().sum())
    return LinearMap(weight.float(), (y_mean - x_mean @ weight).float())


def random_map(dim_p: int, dim_r: int, *, seed: int) -> LinearMap:
    """Xavier-normal weight and no bias: the control that knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(dim_p, dim_r, generator=generator, device=generator.device) * (2.0 / (dim_p + dim_r)) ** 0.5
    return LinearMap(weight, torch.zeros(dim_r, device=weight.device))


def closed_form_map(
    source: Float[Tensor, "rows dim_p"], target: Float[Tensor, "rows dim_r"], config: AlignmentConfig, *, seed: int
) -> LinearMap:
    """The start that `config.start` names, from the embeddings of shared strings, at their mean length.

    A map between spaces that do not quite fit shrinks what it maps; a token that is too short drowns in the output of
    the reader's first layer.
    """
    if config.start == "ridge":
        start = ridge_map(source, target, ridge=config.ridge)
    elif config.start == "procrustes":
        start = procrustes_map(source, target)
    else:
        drawn = random_map(source.shape[1], target.shape[1], seed=seed)
        start = LinearMap(drawn.weight.to(target.device), drawn.bias.to(target.device))
    mapped = source.float() @ start.weight + start.bias
    ratio = float(target.float().norm(dim=-1).mean() / mapped.norm(dim=-1).mean().clamp_min(1e-12))
    return LinearMap(start.weight * ratio, start.bias * ratio)


def norm_match(vectors: Float[Tensor, "*rows dim"], norm: Float[Tensor, ""] | float) -> Float[Tensor, "*rows dim"]:
    """The vectors at length `norm`: what a token of the reader's own table has on average.

    Averages of many rows shrink towards the table's mean; left as they are, the first layer's output drowns them.
    """
    return norm * vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


class LinearAlignment(nn.Module):
    """z = e @ (base + delta) + bias; base fixed, the rest trained. float32.

    Weight decay pulls `delta` to zero, that is back to the closed form. The length of z is left free: in training, soft
    tokens grow to several times the length of a table row, and holding them to it made training slow and unsteady.
    """

    base: Tensor

    def __init__(self, start: LinearMap) -> None:
        """Start at the closed form `start`."""
        super().__init__()
        self.register_buffer("base", start.weight.clone())
        self.delta = nn.Parameter(torch.zeros_like(start.weight))
        self.bias = nn.Parameter(start.bias.clone())

    @property
    def dim_p(self) -> int:
        """Width of the prompter's input space."""
        return self.base.shape[0]

    @property
    def dim_r(self) -> int:
        """Width of the reader's input space."""
        return self.base.shape[1]

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt dim_r"]:
        """Soft tokens in the reader's input space, float32."""
        return tokens.embeddings.float() @ (self.base + self.delta) + self.bias


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
