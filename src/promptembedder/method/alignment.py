"""Alignments from the prompter's space to the reader's, and their closed-form initialisation."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from promptembedder.backbone import Backbone, shared_token_ids
from promptembedder.errors import BackboneError, ConfigError, check_choice
from promptembedder.method.relaxation import RelaxedTokens, relax
from promptembedder.types import Bool, Float, Int, Tensor

__all__ = [
    "ALIGNMENTS",
    "Alignment",
    "AlignmentConfig",
    "AlignmentFit",
    "DeepAlignment",
    "LinearAlignment",
    "LinearMap",
    "VocabularyAlignment",
    "alignment_fit",
    "closed_form_fit",
    "closed_form_map",
    "fit_alignment",
    "procrustes_map",
    "random_map",
    "rescale_norm",
    "ridge_map",
]

STARTS = ("ridge", "procrustes", "random")
_MIN_SHARED = 32  # strings; fewer do not determine a map between two spaces
_ZIPF_SHIFT = 10
_TINY = 0.1  # fraction of the median norm


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Kind of alignment and its initialisation.

    Attributes:
        kind: `linear`: trained matrix. `vocabulary`: vocabulary weights restricted to shared strings, no parameters.
        start: Initial linear matrix: closed form `ridge` or `procrustes`, or `random` as control.
        ridge: Ridge penalty relative to the mean squared singular value of the source; unitless, > 0.
        rank: Rank of the trained delta to the closed form. If None, a full matrix is trained.
    """

    kind: str = "linear"
    start: str = "ridge"
    ridge: float = 1e-4
    rank: int | None = None

    def __post_init__(self) -> None:
        check_choice("alignment", self.kind, ALIGNMENTS)
        check_choice("alignment start", self.start, STARTS)
        if not self.ridge > 0:
            raise ConfigError(f"alignment.ridge must be > 0, got {self.ridge}. Try 1e-4.")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"alignment.rank must be at least 1, got {self.rank}. Leave it out for a full matrix.")

    @property
    def module(self) -> "type[Alignment]":
        """Class of the alignment."""
        return ALIGNMENTS[self.kind]


@dataclass(frozen=True)
class LinearMap:
    """Affine map x -> x @ weight + bias, float32."""

    weight: Float[Tensor, "dim_p dim_r"]
    bias: Float[Tensor, " dim_r"]


@dataclass(frozen=True, kw_only=True)
class AlignmentFit:
    """Quality of a closed-form map between the embeddings of two vocabularies.

    Attributes:
        shared_strings: Number of rows that the map was fitted to.
        held_out_r2: R^2 on a held-out tenth of the rows: 1 is exact, 0 no better than the target's mean.
        norm_ratio: Mean norm of mapped rows over the mean norm of target rows, before norms are rescaled.
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
    """Solve for the least-squares map from `source` rows to `target` rows with a bias and a ridge penalty.

    Minimises sum_i w_i |(source_i - mean) W - (target_i - mean)|^2 + ridge * s |W|^2, s the mean squared singular value
    of the centred, weighted source. Solved in float64. Equals the identity up to the ridge if source equals target.
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
    """Solve for the scaled (semi-)orthogonal map from centred `source` rows to `target` rows."""
    x, y, x_mean, y_mean, share = _centred(source, target, weights)
    u, s, vt = torch.linalg.svd(x.T @ (share * y), full_matrices=False)
    weight = (u @ vt) * (s.sum() / (share * x.square()).sum())
    return LinearMap(weight.float(), (y_mean - x_mean @ weight).float())


def random_map(dim_p: int, dim_r: int, *, seed: int) -> LinearMap:
    """Draw a Xavier-normal weight with zero bias, as a control."""
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
    """Compute the initial map of `config.start` from the embeddings of shared strings, rescaled to their mean norm.

    A least-squares map shrinks its outputs, and the output of the reader's first layer dominates a token of small norm.
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
    """Measure how well the initial map of `config.start` fits the rows."""
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
    """Center both sides by their weighted means; also return the means and the normalised row weights, in float64."""
    x, y = source.double(), target.double()
    share = torch.ones(len(x), 1, dtype=x.dtype, device=x.device) if weights is None else weights.double().unsqueeze(1)
    share = share / share.sum()
    x_mean, y_mean = (share * x).sum(dim=0), (share * y).sum(dim=0)
    return x - x_mean, y - y_mean, x_mean, y_mean, share


def _norm_ratio(start: LinearMap, source: Tensor, target: Tensor) -> float:
    mapped = source.float() @ start.weight + start.bias
    return float(mapped.norm(dim=-1).mean() / target.float().norm(dim=-1).mean().clamp_min(1e-12))


def _explained(start: LinearMap, source: Tensor, target: Tensor) -> float:
    """Compute R^2 on held-out rows. NaN if there are none."""
    if len(source) == 0:
        return float("nan")
    left = target.float() - (source.float() @ start.weight + start.bias)
    around = target.float() - target.float().mean(dim=0)
    return 1 - float(left.square().sum() / around.square().sum().clamp_min(1e-12))


class DeepAlignment(nn.Module):
    """Linear alignments of the deeper layers: additions to a soft token's hidden state at the input of each layer.

    The map of a layer is `down @ up[layer]`. `down` is shared: there are few distinct tokens, and a full matrix per
    layer would dominate the size of a saved model. `up` and `bias` are initialised to zero, so training starts from the
    model whose soft tokens enter at the input alone. Deep prompts are those of P-tuning v2 (Liu et al. 2022,
    arXiv:2110.07602). Here they are computed from generated tokens that follow the text, so the text's states are
    unchanged.
    """

    def __init__(self, *, dim_p: int, dim_r: int, depths: int, prompt: int, rank: int, seed: int = 0) -> None:
        """Initialise maps for `depths` layers and `prompt` soft tokens; `down` is drawn from `seed`."""
        super().__init__()
        rank = min(rank, dim_p)
        generator = torch.Generator().manual_seed(seed)
        # the generator's device, not the default one: a generator draws on its device only
        down = torch.randn(dim_p, rank, generator=generator, device=generator.device)
        # the factor dim_p / rank makes a step of the optimiser move the output as far as one of a full matrix would
        self.down = nn.Parameter(down * dim_p**0.5 / rank)
        self.up = nn.Parameter(torch.zeros(depths, rank, dim_r))
        self.bias = nn.Parameter(torch.zeros(depths, prompt, dim_r))

    @torch.no_grad()
    def round_to_bfloat16_(self) -> None:
        """Round every parameter in place to a bfloat16 value, which halves the size of its file."""
        for weight in self.parameters():
            weight.copy_(weight.bfloat16())

    def fix_bias(self) -> None:
        """Exclude the bias from training."""
        self.bias.requires_grad_(False)

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Compute the additions of all layers, concatenated: width = depths * dim_r, float32.

        Tokens with a fixed offset get no bias, and their offset is not mapped.
        """
        unit = F.rms_norm(tokens.instructed.float(), tokens.embeddings.shape[-1:])
        additions = torch.einsum("bkp,lpr->bklr", unit @ self.down, self.up)
        if tokens.offset is None:
            additions = additions + self.bias.transpose(0, 1)
        return additions.flatten(2)


def rescale_norm(vectors: Float[Tensor, "*rows dim"], norm: Float[Tensor, ""] | float) -> Float[Tensor, "*rows dim"]:
    """Rescale the vectors to length `norm`, the mean embedding norm of the reader.

    Averages of many rows have a small norm, so the output of the first layer would dominate them.
    """
    return norm * vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class _SharedStrings:
    """Strings in the vocabularies of prompter and reader: `source_ids[i]` and `target_ids[i]` are the same string."""

    prompter: Backbone
    reader: Backbone
    source_ids: Int[Tensor, " shared"]
    target_ids: Int[Tensor, " shared"]

    @property
    def weights(self) -> Float[Tensor, " shared"]:
        """Weight of each string in the fit.

        A vocabulary is in the order of its merges, so the rank of an id approximates the frequency rank of its string.
        The square root gives rare rows more weight than Zipf's law.
        """
        return 1 / (torch.arange(len(self.source_ids), device=self.source_ids.device) + _ZIPF_SHIFT).sqrt()

    def inputs(self) -> tuple[Float[Tensor, "shared dim_p"], Float[Tensor, "shared dim_r"]]:
        """Compute the input embeddings of these strings, with embedding scale."""
        prompter, reader = self.prompter, self.reader
        source = prompter.embedding_scale * prompter.input_embeddings.detach()[self.source_ids].float()
        return source, reader.embedding_scale * reader.input_embeddings[self.target_ids].float()


class Alignment(nn.Module):
    """Map of relaxed tokens to soft tokens in the reader's input space. Interface of all entries of `ALIGNMENTS`.

    Attributes:
        needs_weights: The map uses the vocabulary weights behind the tokens.
        trains_soft_prompt: The map uses the tokens' embeddings, to which a trained soft prompt of the prompter adds.
    """

    needs_weights: ClassVar[bool] = False
    trains_soft_prompt: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def fit(cls, strings: _SharedStrings, config: AlignmentConfig, *, seed: int) -> "Alignment":
        """Compute the untrained alignment from the strings in both vocabularies."""

    @classmethod
    @abstractmethod
    def empty(cls, tensors: Mapping[str, Tensor], config: AlignmentConfig, dim_r: int) -> "Alignment":
        """Build an alignment of the shape of the saved `tensors`, whose values are restored later."""

    @abstractmethod
    def forward(
        self, tokens: RelaxedTokens, table: Float[Tensor, "vocab dim_r"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Map relaxed tokens to soft tokens, float32.

        Args:
            table: Input embeddings of the reader, an argument so that they are neither copied nor saved.
        """

    def composes(self, config: AlignmentConfig) -> bool:
        """Return True if `compose` can continue this alignment with a map of `config` to another reader."""
        return False

    def compose(self, onward: "Alignment", config: AlignmentConfig, *, seed: int) -> "Alignment":
        """Build the alignment of `config` that starts as this one followed by `onward`, between two readers."""
        raise NotImplementedError

    @torch.no_grad()
    def merge_delta_(self) -> None:
        """Merge what was trained into fixed weights, in place, to reduce the saved size. The map stays the same."""

    def fix_bias(self) -> None:
        """Exclude the bias from training: beside a fixed offset of the tokens it would be a static prompt."""


def fit_alignment(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> Alignment:
    """Compute the untrained alignment from the strings in both vocabularies.

    Raises:
        BackboneError: If the vocabularies share too few strings.
    """
    return config.module.fit(_shared_strings(prompter, reader), config, seed=seed)


def alignment_fit(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> AlignmentFit:
    """Measure how well the linear closed form maps the embeddings of one vocabulary to the other's.

    Kind `vocabulary` has no map to fit; the result is that of the linear map of `config.start`, for comparison.

    Raises:
        BackboneError: If the vocabularies share too few strings.
    """
    strings = _shared_strings(prompter, reader)
    return closed_form_fit(*strings.inputs(), config, seed=seed, weights=strings.weights)


def _shared_strings(prompter: Backbone, reader: Backbone) -> _SharedStrings:
    source_ids, target_ids = shared_token_ids(prompter.tokenizer.hf, reader.tokenizer.hf)
    trained = _trained_rows(prompter.input_embeddings, source_ids) & _trained_rows(reader.input_embeddings, target_ids)
    source_ids, target_ids = source_ids[trained], target_ids[trained]
    if len(source_ids) < _MIN_SHARED:
        raise BackboneError(
            f"{prompter.identity.source!r} and {reader.identity.source!r} share {len(source_ids)} strings, "
            f"at least {_MIN_SHARED} are needed. Choose another prompter."
        )
    return _SharedStrings(prompter, reader, source_ids, target_ids)


def _trained_rows(table: Float[Tensor, "vocab dim"], ids: Int[Tensor, " shared"]) -> Bool[Tensor, " shared"]:
    """Mask the rows that pretraining updated: those that are neither tiny nor duplicates."""
    rows = table.detach()[ids].float()
    norms = rows.norm(dim=-1)
    _, first, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return (norms > _TINY * norms.median()) & (counts[first] == 1)


class LinearAlignment(Alignment):
    """Linear alignment z = e @ (base + delta) + bias with a fixed base, in float32.

    With a rank, delta = down @ up, where `down` is initialised at random and `up` to zero. Weight decay pulls `delta`
    to zero, back to the closed form. The norm of z is unconstrained: in training, soft tokens grow to several times the
    norm of an embedding, and a fixed norm made training slow and unstable.
    """

    base: Tensor

    def __init__(self, start: LinearMap, *, rank: int | None = None, seed: int = 0) -> None:
        """Initialise the base to `start`. With a rank, `down` is drawn from `seed`."""
        super().__init__()
        # contiguous, as a loaded tensor is: a product with other strides may differ in its last bits
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

    @classmethod
    def fit(cls, strings: _SharedStrings, config: AlignmentConfig, *, seed: int) -> "LinearAlignment":
        """Compute the closed form of `config.start`."""
        start = closed_form_map(*strings.inputs(), config, seed=seed, weights=strings.weights)
        return cls(start, rank=config.rank, seed=seed)

    @classmethod
    def empty(cls, tensors: Mapping[str, Tensor], config: AlignmentConfig, dim_r: int) -> "LinearAlignment":
        """Build a map of zeros with the shape of the saved one."""
        dim_p = len(tensors.get("base", ()))
        return cls(LinearMap(torch.zeros(dim_p, dim_r), torch.zeros(dim_r)), rank=config.rank)

    @property
    def weight(self) -> Float[Tensor, "dim_p dim_r"]:
        """Sum of the fixed base and the trained delta."""
        return self.base + (self.delta if self.rank is None else self.down @ self.up)

    def composes(self, config: AlignmentConfig) -> bool:
        """Return True for another closed-form map."""
        return config.module is LinearAlignment and config.start != "random"

    @torch.no_grad()
    def compose(self, onward: Alignment, config: AlignmentConfig, *, seed: int) -> Alignment:
        """Start from the product of both maps."""
        assert isinstance(onward, LinearAlignment)
        weight, bias, matrix, shift = (one.cpu() for one in (self.weight, self.bias, onward.weight, onward.bias))
        return LinearAlignment(LinearMap(weight @ matrix, bias @ matrix + shift), rank=config.rank, seed=seed)

    @torch.no_grad()
    def merge_delta_(self) -> None:
        """Merge the trained delta into the fixed base in place. The map stays the same, the delta becomes zero."""
        self.base.copy_(self.weight)
        (self.delta if self.rank is None else self.up).zero_()

    def fix_bias(self) -> None:
        """Exclude the bias from training."""
        self.bias.requires_grad_(False)

    def forward(
        self, tokens: RelaxedTokens, table: Float[Tensor, "vocab dim_r"] | None = None
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Map the tokens' embeddings. A fixed offset of the tokens is mapped by the closed form alone."""
        if tokens.offset is None:
            return tokens.embeddings.float() @ self.weight + self.bias
        static = tokens.offset.float() @ self.base + self.bias.detach()
        return tokens.instructed.float() @ self.weight + static


class VocabularyAlignment(Alignment):
    """Parameter-free alignment z = rescale_norm(p restricted to shared strings @ the reader's embedding table)."""

    needs_weights = True
    trains_soft_prompt = False
    source_ids: Tensor
    target_ids: Tensor
    norm: Tensor

    def __init__(self, source_ids: Int[Tensor, " shared"], target_ids: Int[Tensor, " shared"], *, norm: float) -> None:
        """Store the ids: `source_ids[i]` of the prompter and `target_ids[i]` of the reader are the same string."""
        super().__init__()
        self.register_buffer("source_ids", source_ids.clone())
        self.register_buffer("target_ids", target_ids.clone())
        self.register_buffer("norm", torch.tensor(float(norm)))

    @classmethod
    def fit(cls, strings: _SharedStrings, config: AlignmentConfig, *, seed: int) -> "VocabularyAlignment":
        """Store the shared strings."""
        return cls(strings.source_ids, strings.target_ids, norm=strings.reader.mean_embedding_norm)

    @classmethod
    def empty(cls, tensors: Mapping[str, Tensor], config: AlignmentConfig, dim_r: int) -> "VocabularyAlignment":
        """Build an alignment of as many shared strings as the saved one has."""
        ids = torch.zeros(len(tensors.get("source_ids", ())), dtype=torch.long)
        return cls(ids, ids, norm=0.0)

    def forward(
        self, tokens: RelaxedTokens, table: Float[Tensor, "vocab dim_r"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Map the tokens' vocabulary weights.

        Raises:
            ConfigError: If the tokens have no vocabulary weights (relaxation `hidden`).
        """
        if tokens.weights is None:
            raise ConfigError(
                "alignment 'vocabulary' needs vocabulary weights, relaxation 'hidden' has none. Use linear."
            )
        shared = tokens.weights.index_select(-1, self.source_ids)
        shared = shared / shared.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return rescale_norm(relax(shared, table.index_select(0, self.target_ids)).float(), self.norm)


ALIGNMENTS: dict[str, type[Alignment]] = {"linear": LinearAlignment, "vocabulary": VocabularyAlignment}
