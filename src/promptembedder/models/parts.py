"""What a dual encoder is made of, and how the parts come to be."""

from dataclasses import dataclass, field
from pathlib import Path

from promptembedder.backbones import Backbone, load_backbone, shared_token_ids
from promptembedder.errors import BackboneError
from promptembedder.models.config import ModelConfig
from promptembedder.models.prompter import Prompter
from promptembedder.models.soft_token_encoder import level_count, new_head
from promptembedder.models.text_readout import new_text_readout
from promptembedder.nn import (
    AlignmentConfig,
    DeepAlignment,
    IdentityStartLinear,
    LinearAlignment,
    TextReadout,
    VocabularyAlignment,
    closed_form_map,
)
from promptembedder.shapes import Float, Tensor

__all__ = ["Alignment", "Parts", "fit_alignment", "new_deep_alignment", "new_parts", "new_prompter"]

Alignment = LinearAlignment | VocabularyAlignment

_MIN_SHARED = 32  # strings; fewer say nothing about a map between two spaces


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a `DualEncoder` holds.

    Attributes:
        deep: Alignments of the deeper layers; None where soft tokens enter at the input alone.
        readout: Adds the text's own states; or None.
        head: Trained map on the pooled state, or None.
        prompter: None where compiled soft tokens are all that will be asked for.
        compiled: Soft tokens by instruction, [prompt dim_r] each.
    """

    config: ModelConfig
    reader: Backbone
    alignment: Alignment
    prompter: Prompter | None
    deep: DeepAlignment | None = None
    readout: TextReadout | None = None
    head: IdentityStartLinear | None = None
    compiled: dict[str, Float[Tensor, "prompt dim_r"]] = field(default_factory=dict)


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


def new_prompter(backbone: Backbone, config: ModelConfig, *, seed: int = 0) -> Prompter:
    """The prompter that `config` describes, on a loaded backbone."""
    return Prompter(
        backbone,
        config.prompter,
        config.relaxation,
        num_soft_tokens=config.num_soft_tokens,
        anchored=config.alignment.kind == "linear",
        seed=seed,
    )


def fit_alignment(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> Alignment:
    """The alignment before any training, from the strings that both vocabularies hold.

    Raises:
        BackboneError: The vocabularies share too few strings.
    """
    source_ids, target_ids = shared_token_ids(prompter.tokenizer.foreign, reader.tokenizer.foreign)
    if len(source_ids) < _MIN_SHARED:
        raise BackboneError(
            f"{prompter.ref.source!r} and {reader.ref.source!r} share {len(source_ids)} strings, "
            f"at least {_MIN_SHARED} are needed. Choose another prompter."
        )
    if config.kind == "vocabulary":
        return VocabularyAlignment(source_ids, target_ids, norm=reader.table_norm)
    source = prompter.input_scale * prompter.input_table.detach()[source_ids].float()
    target = reader.input_scale * reader.input_table[target_ids].float()
    return LinearAlignment(closed_form_map(source, target, config, seed=seed))
