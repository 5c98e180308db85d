"""Transfer a trained encoder to another reader: configuration, initial alignments and text pooling."""

import copy
import dataclasses
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
    EncoderParts,
    LinearAlignment,
    LinearMap,
    ModelConfig,
    alignment_fit,
    build_deep_alignment,
    build_head,
    build_text_pooling,
    fit_alignment,
)
from promptembedder.model.checkpoint import reader_state_of
from promptembedder.model.dual_encoder import DualEncoder
from promptembedder.types import Float, Tensor

__all__ = ["TransferConfig", "TransferredEncoder", "hidden_maps", "transfer_config", "transfer_encoder"]

_RIDGE = 1e-3  # of the mean variance of the source
_BATCH = 8
_MAX_TOKENS = 128


@torch.no_grad()
def hidden_maps(
    source: Backbone, target: Backbone, texts: Sequence[str], layers: Sequence[tuple[int, int]]
) -> list[Float[Tensor, "dim_s dim_t"]]:
    """For each (a, b): the linear map from states that enter layer a of `source` to those entering b of `target`.

    Ridge regression around the means, over the places where a token of both ends at the same letter: what a decoder
    knows there comes from the same text, however its tokenizer cuts it. Summed up batch by batch, in float64.
    """
    sums = [_Sums(source.dim, target.dim, source.input_embeddings.device) for _ in layers]
    cleaned = sorted((clean_text(text) for text in texts), key=len)
    for start in range(0, len(cleaned), _BATCH):
        batch = cleaned[start : start + _BATCH]
        x, y = _States(source, batch), _States(target, batch)
        places = [(row, end) for row, ends in enumerate(x.ends) for end in ends if end in y.ends[row]]
        if not places:
            continue
        for one, (a, b) in zip(sums, layers, strict=True):
            one.add(x.at(a, places), y.at(b, places))
    return [one.solved() for one in sums]


class _States:
    """Hidden states of a batch of texts, by layer and by the letter at which a token ends."""

    def __init__(self, backbone: Backbone, texts: Sequence[str]) -> None:
        prefix = backbone.tokenizer.prefix
        room = min(_MAX_TOKENS, backbone.max_positions or _MAX_TOKENS) - len(prefix)
        foreign, words = backbone.tokenizer.hf, {"add_special_tokens": False, "split_special_tokens": True}
        rows = [foreign(text, return_offsets_mapping=True, **words) for text in texts]
        ids = [prefix + row["input_ids"][:room] for row in rows]
        padded, mask = left_pad_ids(ids, device=backbone.input_embeddings.device)
        width = padded.shape[1]
        self.ends: list[dict[int, int]] = []
        for row, own in zip(rows, ids, strict=True):
            first = width - len(own) + len(prefix)
            self.ends.append({end: first + place for place, (_, end) in enumerate(row["offset_mapping"][:room])})
        self._hidden: tuple[Tensor, ...] = ()
        if width:
            self._hidden = backbone.decoder(
                input_ids=padded,
                attention_mask=mask,
                position_ids=text_positions(mask),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states

    def at(self, layer: int, places: Sequence[tuple[int, int]]) -> Float[Tensor, "places dim"]:
        """States that enter the layer, at (row, letter)."""
        rows = [row for row, _ in places]
        return self._hidden[layer][rows, [self.ends[row][end] for row, end in places]].double()


class _Sums:
    """What ridge regression needs of all pairs of rows."""

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
    """Where to, and from which start.

    Attributes:
        reader: The LLM to move to.
        alignment: Of the new reader: kind, closed form and rank of what is trained.
        carried: Compose the trained alignment with a map from the old reader to the new one, so that what it learned
            comes along; else the alignment starts anew from the prompter's own table. A `random` start is always anew.
        text_pooling_layer: As in `ModelConfig`, of the new reader.
        early_exit_fraction: As in `ModelConfig`; None: that of the model.
    """

    reader: BackboneConfig
    alignment: AlignmentConfig = dataclasses.field(default_factory=AlignmentConfig)
    carried: bool = True
    text_pooling_layer: int | None = None
    early_exit_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class TransferredEncoder:
    """An encoder on the new reader, and how well the spaces fit."""

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
    """`old` on another reader, at its closed form, its prompter put away; `old` itself stays as it is.

    Args:
        instructions: Those that the result can be trained under while the prompter is away.
        texts: Some texts that both readers read, without labels: they tell how the deeper alignments are carried over,
            which begin at zero without them.

    Raises:
        ConfigError: The model has no prompter in memory, or its soft tokens depend on the texts.
        BackboneError: The reader cannot be loaded, or shares too few strings.
    """
    parts = old.parts()
    if parts.prompter is None:
        raise ConfigError("the model was loaded without its prompter and cannot be moved. Load it with the prompter.")
    if parts.config.conditioning != "instruction":
        raise ConfigError("soft tokens depend on the text here (instruction_and_text): train anew on the new reader.")
    try:
        reader = load_backbone(move.reader, head=False, cache_folder=cache_folder)
        alignment, fit = _moved_alignment(parts, reader, move, seed)
    except BackboneError as error:
        raise BackboneError(
            f"cannot move from {parts.reader.identity.source!r} to {move.reader.source!r}: {error}"
        ) from error
    alike = (reader.identity.fingerprint, reader.identity.layers) == (
        parts.reader.identity.fingerprint,
        parts.reader.identity.layers,
    )
    config = transfer_config(parts.config, move)
    sides = [reader_state_of(parts), *parts.others]
    new = EncoderParts(
        config=config,
        reader=reader,
        alignment=alignment,
        deep=_moved_deep(parts, config, reader, texts if move.carried else (), alike=alike, seed=seed),
        text_pooling=_copied(parts.text_pooling, alike=alike) or build_text_pooling(config, reader),
        head=_copied(parts.head, alike=alike) or build_head(config, reader),
        prompter=None,
        prompter_snapshot=old.snapshot_prompter(
            [*instructions, config.default_instruction], weights=move.alignment.kind == "vocabulary"
        ),
        others=tuple(side for side in sides if side.identity["source"] != move.reader.source),
    )
    return TransferredEncoder(encoder=DualEncoder(new).to(old.device), fit=fit)


def transfer_config(config: ModelConfig, move: TransferConfig) -> ModelConfig:
    """The configuration of a model of `config` after the move; a depth in layers does not go with it to another LLM."""
    kept = config.text_pooling_layer if move.reader.source == config.reader.source else None
    return dataclasses.replace(
        config,
        reader=move.reader,
        alignment=move.alignment,
        text_pooling_layer=move.text_pooling_layer or kept,
        early_exit_fraction=config.early_exit_fraction
        if move.early_exit_fraction is None
        else move.early_exit_fraction,
    )


def _moved_alignment(
    parts: EncoderParts, reader: Backbone, move: TransferConfig, seed: int
) -> tuple[Alignment, AlignmentFit]:
    """The new alignment; carried over, it is the old one followed by the map between the two readers' tables."""
    assert parts.prompter is not None
    linear = move.alignment.kind == "linear" and move.alignment.start != "random"
    carried = move.carried and linear and isinstance(parts.alignment, LinearAlignment)
    origin = parts.reader if carried else parts.prompter.backbone
    fit = alignment_fit(origin, reader, move.alignment, seed=seed)
    bridge = fit_alignment(origin, reader, move.alignment, seed=seed)
    if not carried:
        return bridge, fit
    assert isinstance(parts.alignment, LinearAlignment)
    assert isinstance(bridge, LinearAlignment)
    with torch.no_grad():
        weight, bias = (one.cpu() for one in (parts.alignment.weight, parts.alignment.bias))
        onward, shift = (one.cpu() for one in (bridge.weight, bridge.bias))
        start = LinearMap(weight @ onward, bias @ onward + shift)
    return LinearAlignment(start, rank=move.alignment.rank, seed=seed), fit


def _moved_deep(
    parts: EncoderParts, config: ModelConfig, reader: Backbone, texts: Sequence[str], *, alike: bool, seed: int
) -> DeepAlignment | None:
    """Alignments of the deeper layers: the way down reads the prompter and comes along; the ways up follow the texts.

    Each is that of the old layer at the same share of the depth, followed by the map between the two layers' states.
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
