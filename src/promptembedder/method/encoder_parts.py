"""Parts of a dual encoder and the functions that build them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbone import Backbone, load_backbone, shared_token_ids
from promptembedder.errors import BackboneError
from promptembedder.method.alignment import (
    AlignmentConfig,
    AlignmentFit,
    DeepAlignment,
    LinearAlignment,
    VocabularyAlignment,
    closed_form_fit,
    closed_form_map,
)
from promptembedder.method.config import ModelConfig
from promptembedder.method.instruction_gate import InstructionGate
from promptembedder.method.pooling import WhitenedTextPooling
from promptembedder.method.prompter import Prompter
from promptembedder.method.reference_instructions import REFERENCE_INSTRUCTIONS
from promptembedder.method.relaxation import RelaxedTokens
from promptembedder.method.text_pooling import build_text_pooling, gated_directions
from promptembedder.types import Bool, Float, Int, Tensor

__all__ = [
    "Alignment",
    "EncoderParts",
    "PrompterSnapshot",
    "ReaderState",
    "alignment_fit",
    "build_deep_alignment",
    "build_gate",
    "build_parts",
    "build_prompter",
    "fit_alignment",
    "num_prompt_layers",
]

Alignment = LinearAlignment | VocabularyAlignment

_MIN_SHARED = 32  # strings; fewer do not determine a map between two spaces
_ZIPF_SHIFT = 10
_TINY = 0.1  # fraction of the median norm


@dataclass(frozen=True, kw_only=True)
class ReaderState:
    """Weights that belong to one reader, which is not in memory.

    Attributes:
        identity: Manifest entry of the reader.
        state: Alignments and text_pooling, by name.
        compiled: Soft tokens by instruction.
    """

    config: ModelConfig
    identity: Mapping[str, Any]
    state: Mapping[str, Tensor]
    compiled: Mapping[str, Float[Tensor, "prompt width"]]


@dataclass(frozen=True, kw_only=True)
class PrompterSnapshot:
    """Saved weights and cached outputs of an offloaded prompter.

    Attributes:
        identity: Manifest entry of the prompter's backbone.
        state: Trained weights.
        tokens: Relaxed tokens by instruction, one row each, in the prompter's input space.
    """

    identity: Mapping[str, Any]
    state: Mapping[str, Tensor]
    tokens: Mapping[str, RelaxedTokens] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EncoderParts:
    """Parts of a `DualEncoder`.

    Attributes:
        deep: Alignments of the deeper layers. None if soft tokens enter at the input alone.
        text_pooling: Addition of the frozen text states, or None.
        gate: Scales of the text states by instruction, or None.
        prompter: None if the encoder serves compiled or cached soft tokens only.
        compiled: Soft tokens by instruction, [prompt dim_r] each.
        prompter_snapshot: Weights and cached outputs of an offloaded prompter.
        others: States of further readers for the same prompter.
    """

    config: ModelConfig
    reader: Backbone
    alignment: Alignment
    prompter: Prompter | None
    deep: DeepAlignment | None = None
    text_pooling: WhitenedTextPooling | None = None
    gate: InstructionGate | None = None
    compiled: dict[str, Float[Tensor, "prompt dim_r"]] = field(default_factory=dict)
    prompter_snapshot: PrompterSnapshot | None = None
    others: tuple[ReaderState, ...] = ()

    def __post_init__(self) -> None:
        """Freeze the biases of alignments that map a fixed offset: they would be a static prompt."""
        if self.config.prompter.output == "state":
            for module in (self.alignment, self.deep):
                if isinstance(module, (LinearAlignment, DeepAlignment)):
                    module.bias.requires_grad_(False)


def build_parts(config: ModelConfig, *, cache_folder: Path | None = None, seed: int = 0) -> EncoderParts:
    """Load the backbones and build untrained parts: random adapters, closed-form alignment.

    Raises:
        BackboneError: If a backbone cannot be loaded, or the two share too few strings for a closed form.
    """
    reader = load_backbone(config.reader, head=False, cache_folder=cache_folder)
    backbone = load_backbone(config.prompter.backbone, head=True, cache_folder=cache_folder)
    alignment = fit_alignment(backbone, reader, config.alignment, seed=seed)  # before adapters wrap the table
    prompter = build_prompter(backbone, config, seed=seed)
    if config.prompter.output == "state":
        prompter.fit_state_statistics(REFERENCE_INSTRUCTIONS, template=config.prompter.template)
    return EncoderParts(
        config=config,
        reader=reader,
        alignment=alignment,
        deep=build_deep_alignment(config, backbone.dim, reader, seed=seed),
        text_pooling=build_text_pooling(config, reader),
        gate=build_gate(config, backbone.dim, reader, seed=seed),
        prompter=prompter,
    )


def build_deep_alignment(config: ModelConfig, dim_p: int, reader: Backbone, *, seed: int = 0) -> DeepAlignment | None:
    """Build untrained alignments of the deeper layers. None if soft tokens enter at the input alone."""
    depths = num_prompt_layers(config, reader) - 1
    if depths == 0:
        return None
    return DeepAlignment(
        dim_p=dim_p,
        dim_r=reader.dim,
        depths=depths,
        prompt=config.num_soft_tokens,
        rank=config.deep_prompt_rank,
        seed=seed,
    )


def build_gate(config: ModelConfig, dim_p: int, reader: Backbone, *, seed: int = 0) -> InstructionGate | None:
    """Build an untrained gate. None without `config.gate_rank`."""
    if not config.gate_rank:
        return None
    rank = gated_directions(config, reader)
    return InstructionGate(dim_p=dim_p, prompt=config.num_soft_tokens, rank=rank, seed=seed)


def num_prompt_layers(config: ModelConfig, reader: Backbone) -> int:
    """Count where soft tokens enter the reader: the input, and each `deep_prompt_interval`-th layer."""
    every = config.deep_prompt_interval
    return 1 + (len(range(every, reader.identity.layers, every)) if every else 0)


def build_prompter(
    backbone: Backbone, config: ModelConfig, *, train_soft_prompt: bool | None = None, seed: int = 0
) -> Prompter:
    """Build the prompter of `config` on a loaded backbone.

    Args:
        train_soft_prompt: Train the soft prompt. If None, it is trained with a linear alignment of relaxed tokens.
    """
    return Prompter(
        backbone,
        config.prompter,
        config.relaxation,
        num_soft_tokens=config.num_soft_tokens,
        train_soft_prompt=_trains_soft_prompt(config) if train_soft_prompt is None else train_soft_prompt,
        seed=seed,
    )


def _trains_soft_prompt(config: ModelConfig) -> bool:
    return config.alignment.kind == "linear" and config.prompter.output == "token"


def fit_alignment(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> Alignment:
    """Compute the untrained alignment from the strings in both vocabularies.

    Raises:
        BackboneError: If the vocabularies share too few strings.
    """
    rows = _shared_rows(prompter, reader)
    if config.kind == "vocabulary":
        return VocabularyAlignment(rows.source_ids, rows.target_ids, norm=reader.mean_embedding_norm)
    start = closed_form_map(*rows.inputs(prompter, reader), config, seed=seed, weights=rows.weights)
    return LinearAlignment(start, rank=config.rank, seed=seed)


def alignment_fit(prompter: Backbone, reader: Backbone, config: AlignmentConfig, *, seed: int = 0) -> AlignmentFit:
    """Measure how well the linear closed form maps the embeddings of one vocabulary to the other's.

    Kind `vocabulary` has no map to fit; the result is that of the linear map of `config.start`, for comparison.

    Raises:
        BackboneError: If the vocabularies share too few strings.
    """
    rows = _shared_rows(prompter, reader)
    return closed_form_fit(*rows.inputs(prompter, reader), config, seed=seed, weights=rows.weights)


@dataclass(frozen=True)
class _SharedRows:
    """Ids of shared strings: `source_ids[i]` and `target_ids[i]` are the same string."""

    source_ids: Int[Tensor, " shared"]
    target_ids: Int[Tensor, " shared"]

    @property
    def weights(self) -> Float[Tensor, " shared"]:
        """Weight of each string in the fit.

        A vocabulary is in the order of its merges, so the rank of an id approximates the frequency rank of its string.
        The square root gives rare rows more weight than Zipf's law.
        """
        return 1 / (torch.arange(len(self.source_ids), device=self.source_ids.device) + _ZIPF_SHIFT).sqrt()

    def inputs(
        self, prompter: Backbone, reader: Backbone
    ) -> tuple[Float[Tensor, "shared dim_p"], Float[Tensor, "shared dim_r"]]:
        """Compute the input embeddings of these strings, with embedding scale."""
        source = prompter.embedding_scale * prompter.input_embeddings.detach()[self.source_ids].float()
        return source, reader.embedding_scale * reader.input_embeddings[self.target_ids].float()


def _shared_rows(prompter: Backbone, reader: Backbone) -> _SharedRows:
    source_ids, target_ids = shared_token_ids(prompter.tokenizer.hf, reader.tokenizer.hf)
    trained = _trained_rows(prompter.input_embeddings, source_ids) & _trained_rows(reader.input_embeddings, target_ids)
    source_ids, target_ids = source_ids[trained], target_ids[trained]
    if len(source_ids) < _MIN_SHARED:
        raise BackboneError(
            f"{prompter.identity.source!r} and {reader.identity.source!r} share {len(source_ids)} strings, "
            f"at least {_MIN_SHARED} are needed. Choose another prompter."
        )
    return _SharedRows(source_ids, target_ids)


def _trained_rows(table: Float[Tensor, "vocab dim"], ids: Int[Tensor, " shared"]) -> Bool[Tensor, " shared"]:
    """Mask the rows that pretraining updated: those that are neither tiny nor duplicates."""
    rows = table.detach()[ids].float()
    norms = rows.norm(dim=-1)
    _, first, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return (norms > _TINY * norms.median()) & (counts[first] == 1)
