"""Transfer a trained encoder to another reader: configuration, initial alignments and text pooling."""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from promptembedder.backbone import Backbone, BackboneConfig, left_pad_ids, load_backbone, text_positions
from promptembedder.data import clean_text
from promptembedder.errors import BackboneError, ConfigError
from promptembedder.method import (
    Alignment,
    AlignmentConfig,
    AlignmentFit,
    DeepAlignment,
    DualEncoder,
    EncoderParts,
    ModelConfig,
    alignment_fit,
    build_deep_alignment,
    build_query,
    build_text_pooling,
    fit_alignment,
    reader_state_of,
)
from promptembedder.types import Float, Tensor

__all__ = ["TransferConfig", "TransferredEncoder", "hidden_maps", "transfer_config", "transfer_encoder"]

logger = logging.getLogger(__name__)

_RIDGE = 1e-3  # fraction of the source's mean variance
_BATCH = 8
_MAX_TOKENS = 128


@torch.no_grad()
def hidden_maps(
    source: Backbone, target: Backbone, texts: Sequence[str], layers: Sequence[tuple[int, int]]
) -> list[Float[Tensor, "dim_s dim_t"]]:
    """Fit one linear map per pair (a, b), from the inputs of layer a of `source` to the inputs of layer b of `target`.

    The maps are centred ridge regressions over the characters at which a token ends in both tokenizations: both states
    there depend on the same text. Sums are accumulated over batches in float64.
    """
    sums = [_Sums(source.dim, target.dim, source.input_embeddings.device) for _ in layers]
    cleaned = sorted((clean_text(text) for text in texts), key=len)
    for start in range(0, len(cleaned), _BATCH):
        batch = cleaned[start : start + _BATCH]
        x, y = _States(source, batch), _States(target, batch)
        positions = [(row, end) for row, ends in enumerate(x.ends) for end in ends if end in y.ends[row]]
        if not positions:
            continue
        for one, (a, b) in zip(sums, layers, strict=True):
            one.add(x.at(a, positions), y.at(b, positions))
    return [one.solved() for one in sums]


class _States:
    """Hidden states of a batch of texts, by layer and by the character offset at which a token ends."""

    def __init__(self, backbone: Backbone, texts: Sequence[str]) -> None:
        prefix = backbone.tokenizer.prefix
        room = min(_MAX_TOKENS, backbone.max_positions or _MAX_TOKENS) - len(prefix)
        tokenizer, words = backbone.tokenizer.hf, {"add_special_tokens": False, "split_special_tokens": True}
        rows = [tokenizer(text, return_offsets_mapping=True, **words) for text in texts]
        ids = [prefix + row["input_ids"][:room] for row in rows]
        padded, mask = left_pad_ids(ids, device=backbone.input_embeddings.device)
        width = padded.shape[1]
        self.ends: list[dict[int, int]] = []
        for row, row_ids in zip(rows, ids, strict=True):
            first = width - len(row_ids) + len(prefix)
            self.ends.append({end: first + index for index, (_, end) in enumerate(row["offset_mapping"][:room])})
        self._hidden: tuple[Tensor, ...] = ()
        if width:
            self._hidden = backbone.decoder(
                input_ids=padded,
                attention_mask=mask,
                position_ids=text_positions(mask),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states

    def at(self, layer: int, positions: Sequence[tuple[int, int]]) -> Float[Tensor, "positions dim"]:
        """Return the states that enter the layer, at (row, character offset)."""
        rows = [row for row, _ in positions]
        return self._hidden[layer][rows, [self.ends[row][end] for row, end in positions]].double()


class _Sums:
    """Running sums for ridge regression over pairs of rows."""

    def __init__(self, dim_s: int, dim_t: int, device: torch.device) -> None:
        self.count = 0
        self.x = torch.zeros(dim_s, dtype=torch.float64, device=device)
        self.y = torch.zeros(dim_t, dtype=torch.float64, device=device)
        self.xx = torch.zeros(dim_s, dim_s, dtype=torch.float64, device=device)
        self.xy = torch.zeros(dim_s, dim_t, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "rows dim_s"], y: Float[Tensor, "rows dim_t"]) -> None:
        self.count += len(x)
        self.x += x.sum(dim=0)
        self.y += y.sum(dim=0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def solved(self) -> Float[Tensor, "dim_s dim_t"]:
        count = max(self.count, 1)
        xx = self.xx - torch.outer(self.x, self.x) / count
        xy = self.xy - torch.outer(self.x, self.y) / count
        ridge = _RIDGE * xx.diagonal().mean().clamp_min(1e-12)
        return torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype, device=xx.device), xy).float()


Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Target and initialization of a transfer.

    Attributes:
        reader: Target LLM.
        alignment: Alignment to the new reader: kind, closed form and rank of the trained delta.
        compose_alignment: If True, compose the trained alignment with a map from the old to the new reader, which
            preserves its training. If False, initialize the alignment from the prompter's input embeddings. Start
            `random` ignores this setting.
        text_pooling_layer: As in `ModelConfig`, for the new reader.
        early_exit_fraction: As in `ModelConfig`. If None, that of the model.
    """

    reader: BackboneConfig
    alignment: AlignmentConfig = dataclasses.field(default_factory=AlignmentConfig)
    compose_alignment: bool = True
    text_pooling_layer: int | None = None
    early_exit_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class TransferredEncoder:
    """Encoder on the new reader, with the fit of its alignment."""

    encoder: DualEncoder
    fit: AlignmentFit


def transfer_encoder(
    old: DualEncoder,
    move: TransferConfig,
    *,
    instructions: Sequence[str] = (),
    texts: Sequence[str] = (),
    cache_folder: Path | None = None,
    seed: int = 0,
) -> TransferredEncoder:
    """Transfer `old` to another reader with a closed-form alignment and an offloaded prompter. `old` is not modified.

    Args:
        instructions: Instructions for training without the prompter.
        texts: Unlabelled texts to fit the maps between hidden states of both readers. Without texts, deep alignments
            start at zero.

    Raises:
        ConfigError: If the prompter is not in memory, or if the soft tokens depend on the texts.
        BackboneError: If the reader cannot be loaded, or if the vocabularies share too few strings.
    """
    parts = old.parts()
    if parts.prompter is None:
        raise ConfigError("the model was loaded without its prompter and cannot be moved. Load it with the prompter.")
    if parts.config.prompter.depends_on_text:
        raise ConfigError(
            "soft tokens depend on the text here (prompter.template contains {text}): train anew on the new reader."
        )
    try:
        reader = load_backbone(move.reader, head=False, cache_folder=cache_folder)
        alignment, fit = _build_alignment(parts, reader, move, seed)
    except BackboneError as error:
        raise BackboneError(
            f"cannot move from {parts.reader.identity.source!r} to {move.reader.source!r}: {error}"
        ) from error
    alike = (reader.identity.fingerprint, reader.identity.layers) == (
        parts.reader.identity.fingerprint,
        parts.reader.identity.layers,
    )
    config = transfer_config(parts.config, move)
    if not alike and config.instruction_heads:
        # trained maps of the old reader's states: untrained ones would replace the text's state by noise
        logger.warning("the instruction pooling does not move to another reader: texts are pooled alike there")
        config = dataclasses.replace(config, instruction_heads=0)
    sides = [reader_state_of(parts), *parts.others]
    new = EncoderParts(
        config=config,
        reader=reader,
        alignment=alignment,
        deep=_build_deep_alignment(
            parts, config, reader, texts if move.compose_alignment else (), alike=alike, seed=seed
        ),
        text_pooling=_copied(parts.text_pooling, alike=alike) or build_text_pooling(config, reader),
        query=_copied(parts.query, alike=alike) or build_query(config, parts.prompter.backbone.dim, seed=seed),
        prompter=None,
        prompter_snapshot=old.snapshot_prompter(
            [*instructions, config.default_instruction], weights=move.alignment.module.needs_weights
        ),
        others=tuple(side for side in sides if side.identity["source"] != move.reader.source),
    )
    return TransferredEncoder(encoder=DualEncoder(new).to(old.device), fit=fit)


def transfer_config(config: ModelConfig, move: TransferConfig) -> ModelConfig:
    """Return the configuration of the transferred model. A depth in layers is kept only for the same LLM."""
    layer = config.text_pooling_layer if move.reader.source == config.reader.source else None
    return dataclasses.replace(
        config,
        reader=move.reader,
        alignment=move.alignment,
        text_pooling_layer=move.text_pooling_layer or layer,
        early_exit_fraction=config.early_exit_fraction
        if move.early_exit_fraction is None
        else move.early_exit_fraction,
    )


def _build_alignment(
    parts: EncoderParts, reader: Backbone, move: TransferConfig, seed: int
) -> tuple[Alignment, AlignmentFit]:
    """Build the closed-form alignment, or compose the old one with the map between the readers' input embeddings."""
    assert parts.prompter is not None
    compose = move.compose_alignment and parts.alignment.composes(move.alignment)
    origin = parts.reader if compose else parts.prompter.backbone
    fit = alignment_fit(origin, reader, move.alignment, seed=seed)
    onward = fit_alignment(origin, reader, move.alignment, seed=seed)
    return (parts.alignment.compose(onward, move.alignment, seed=seed) if compose else onward), fit


def _build_deep_alignment(
    parts: EncoderParts, config: ModelConfig, reader: Backbone, texts: Sequence[str], *, alike: bool, seed: int
) -> DeepAlignment | None:
    """Build the deep alignments: copy the down projection, and map the up projections to the new reader with the texts.

    Each up projection is the one at the same relative depth in the old reader, composed with the map between the states
    of both layers.
    """
    old = parts.deep
    if old is None:
        return None
    if alike:
        return _copied(old, alike=True)
    deep = build_deep_alignment(config, old.down.shape[0], reader, seed=seed)
    assert deep is not None
    with torch.no_grad():
        deep.down.copy_(old.down)
        if texts:
            every, stretch = config.deep_prompt_interval, parts.reader.identity.layers / reader.identity.layers
            levels = [round((level + 1) * stretch) for level in range(len(deep.up))]
            nearest = [min(max(level, 1), len(old.up)) - 1 for level in levels]
            layers = [((near + 1) * every, (level + 1) * every) for level, near in enumerate(nearest)]
            for level, onward in enumerate(hidden_maps(parts.reader, reader, texts, layers)):
                deep.up[level] = old.up[nearest[level]] @ onward
                deep.bias[level] = old.bias[nearest[level]] @ onward
    return deep


def _copied(module: Module | None, *, alike: bool) -> Module | None:
    return copy.deepcopy(module) if alike else None
