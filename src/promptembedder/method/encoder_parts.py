"""What a dual encoder is made of, and how the parts come to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbone import Backbone, load_backbone, shared_token_ids
from promptembedder.errors import BackboneError
from promptembedder.method.config import ModelConfig
from promptembedder.method.prompter import Prompter
from promptembedder.method.text_pooling import new_text_readout
from promptembedder.method.alignment import AlignmentConfig, AlignmentFit, DeepAlignment, IdentityStartLinear, LinearAlignment, VocabularyAlignment, closed_form_fit, closed_form_map
from promptembedder.method.relaxation import RelaxedTokens
from promptembedder.method.pooling import TextReadout
from promptembedder.types import Bool, Float, Int, Tensor

__all__ = [
    "Alignment",
    "Parts",
    "PrompterAway",
    "ReaderSide",
    "fit_alignment",
    "level_count",
    "measured_fit",
    "new_deep_alignment",
    "new_head",
    "new_parts",
    "new_prompter",
]

Alignment = LinearAlignment | VocabularyAlignment

_MIN_SHARED = 32  # strings; fewer say nothing about a map between two spaces
_ZIPF_SHIFT = 10
_TINY = 0.1  # of the median length


@dataclass(frozen=True, kw_only=True)
class ReaderSide:
    """What belongs to one reader and to no other, as tensors; the reader itself is not in memory.

    Attributes:
        ref: What a manifest remembers of the reader.
        state: Alignments, readout and head, by name.
        compiled: Soft tokens by instruction.
    """

    config: ModelConfig
    ref: Mapping[str, Any]
    state: Mapping[str, Tensor]
    compiled: Mapping[str, Float[Tensor, "prompt width"]]


@dataclass(frozen=True, kw_only=True)
class PrompterAway:
    """A prompter that is not in memory: what a save needs of it, and what it has said.

    Attributes:
        ref: What a manifest remembers of its backbone.
        state: Its trained weights.
        tokens: What it generated for some instructions, one row each, in its own input space.
    """

    ref: Mapping[str, Any]
    state: Mapping[str, Tensor]
    tokens: Mapping[str, RelaxedTokens] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a `DualEncoder` holds.

    Attributes:
        deep: Alignments of the deeper layers; None where soft tokens enter at the input alone.
        readout: Adds the text's own states; or None.
        head: Trained map on the pooled state, or None.
        prompter: None where compiled soft tokens are all that will be asked for.
        compiled: Soft tokens by instruction, [prompt dim_r] each.
        away: Stands for a prompter that is not in memory, where its weights or words are needed.
        others: Further readers that the same prompter can be opened on.
    """

    config: ModelConfig
    reader: Backbone
    alignment: Alignment
    prompter: Prompter | None
    deep: DeepAlignment | None = None
    readout: TextReadout | None = None
    head: IdentityStartLinear | None = None
    compiled: dict[str, Float[Tensor, "prompt dim_r"]] = field(default_factory=dict)
    away: PrompterAway | None = None
    others: tuple[ReaderSide, ...] = ()


def new_parts(config: ModelConfig, *, cache_folder: Path | None = None, seed: int = 0) -> Parts:
    """Untrained parts: backbones loaded, adapters at their random start, alignment at its closed form.

    Raises:
        BackboneError: A backbone cannot be loaded, or the two share too few strings for a closed form.
    """
    reader = load_backbone(config.reader, head=False, cache_folder=cache_folder)
    backbone = load_backbone(config.prompter.backbone, head=True, cache_folder=cache_folder)
    alignment = fit_alignment(backbone, reader, config.alignment, seed=seed)  # before adapters wrap the table
    prompter = new_prompter(backbone, config, seed=seed)
    return Parts(
        config=config,
        reader=reader,
        alignment=alignment,
        deep=new_deep_alignment(config, backbone.dim, reader, seed=seed),
        readout=new_text_readout(config, reader),
        head=new_head(config, reader),
        prompter=prompter,
    )


def new_deep_alignment(config: ModelConfig, dim_p: int, reader: Backbone, *, seed: int = 0) -> DeepAlignment | None:
    """Untrained alignments of the deeper layers that `config` names; None if it names none."""
    depths = level_count(config, reader) - 1
    if depths == 0:
        return None
    return DeepAlignment(
        dim_p=dim_p, dim_r=reader.dim, depths=depths, prompt=config.num_soft_tokens, rank=config.deep_rank, seed=seed
    )


def level_count(settings: ModelConfig, reader: Backbone) -> int:
    """Places where soft tokens enter the reader: the input, and each `deep_every`-th layer."""
    every = settings.deep_every
    return 1 + (len(range(every, reader.ref.layers, every)) if every else 0)


def new_head(settings: ModelConfig, reader: Backbone) -> IdentityStartLinear | None:
    """The map on the pooled state that `settings` names, still the identity; None if it names none."""
    return IdentityStartLinear(reader.dim) if settings.head else None


def new_prompter(backbone: Backbone, config: ModelConfig, *, anchored: bool | None = None, seed: int = 0) -> Prompter:
    """The prompter that `config` describes, on a loaded backbone.

    Args:
        anchored: Whether its anchor is trained; None: where the alignment can read it.
    """
    return Prompter(
        backbone,
        config.prompter,
        config.relaxation,
        num_soft_tokens=config.num_soft_tokens,
        anchored=config.alignment.kind == "linear" if anchored is None else anchored,
        seed=seed,
    )


def fit_alignment(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> Alignment:
    """The alignment before any training, from the strings that both vocabularies hold.

    Raises:
        BackboneError: The vocabularies share too few strings.
    """
    rows = _shared_rows(prompter, reader)
    if config.kind == "vocabulary":
        return VocabularyAlignment(rows.source_ids, rows.target_ids, norm=reader.table_norm)
    start = closed_form_map(*rows.inputs(prompter, reader), config, seed=seed, weights=rows.weights)
    return LinearAlignment(start, rank=config.rank, seed=seed)


def measured_fit(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> AlignmentFit:
    """How well the linear closed form carries strings from the one vocabulary to the other's vectors.

    Of kind `vocabulary` nothing is fitted, the reader's own rows stand for the strings; its fit is that of the linear
    map from the same start, for comparison.

    Raises:
        BackboneError: The vocabularies share too few strings.
    """
    rows = _shared_rows(prompter, reader)
    return closed_form_fit(*rows.inputs(prompter, reader), config, seed=seed, weights=rows.weights)


@dataclass(frozen=True)
class _SharedRows:
    """`source_ids[i]` and `target_ids[i]` spell the same string."""

    source_ids: Int[Tensor, " shared"]
    target_ids: Int[Tensor, " shared"]

    @property
    def weights(self) -> Float[Tensor, " shared"]:
        """How much each string counts.

        A vocabulary is in the order of its merges, so the rank of an id stands for how frequent its string is; the
        square root keeps more rows in play than Zipf's law itself would.
        """
        return 1 / (torch.arange(len(self.source_ids), device=self.source_ids.device) + _ZIPF_SHIFT).sqrt()

    def inputs(
        self, prompter: Backbone, reader: Backbone
    ) -> tuple[Float[Tensor, "shared dim_p"], Float[Tensor, "shared dim_r"]]:
        """What the first layers read of these strings."""
        source = prompter.input_scale * prompter.input_table.detach()[self.source_ids].float()
        return source, reader.input_scale * reader.input_table[self.target_ids].float()


def _shared_rows(prompter: Backbone, reader: Backbone) -> _SharedRows:
    source_ids, target_ids = shared_token_ids(prompter.tokenizer.foreign, reader.tokenizer.foreign)
    trained = _trained_rows(prompter.input_table, source_ids) & _trained_rows(reader.input_table, target_ids)
    source_ids, target_ids = source_ids[trained], target_ids[trained]
    if len(source_ids) < _MIN_SHARED:
        raise BackboneError(
            f"{prompter.ref.source!r} and {reader.ref.source!r} share {len(source_ids)} strings, "
            f"at least {_MIN_SHARED} are needed. Choose another prompter."
        )
    return _SharedRows(source_ids, target_ids)


def _trained_rows(table: Float[Tensor, "vocab dim"], ids: Int[Tensor, " shared"]) -> Bool[Tensor, " shared"]:
    """Which of these rows training has touched: no tiny one, and none that equals another."""
    rows = table.detach()[ids].float()
    norms = rows.norm(dim=-1)
    _, first, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return (norms > _TINY * norms.median()) & (counts[first] == 1)
