"""Alignments from the prompter's space to the reader's, and their closed-form initialisation."""

from dataclasses import dataclass
import torch
from promptembedder.errors import ConfigError, shown
from promptembedder.types import Float, Tensor
from torch import nn
from torch.nn import functional as F
from promptembedder.method.relaxation import RelaxedTokens
from promptembedder.errors import ConfigError
from promptembedder.method.relaxation import RelaxedTokens, relaxed_token
from promptembedder.types import Float, Int, Tensor

__all__ = ['AlignmentConfig', 'AlignmentFit', 'DeepAlignment', 'IdentityStartLinear', 'LinearAlignment', 'LinearMap', 'VocabularyAlignment', 'closed_form_fit', 'closed_form_map', 'norm_match', 'procrustes_map', 'random_map', 'ridge_map']

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
