"""Saving and loading a dual encoder: trained weights, compiled soft tokens and a manifest; never a backbone."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbone import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import ModelFormatError, shown
from promptembedder.method import ModelConfig
from promptembedder.method import Alignment, Parts, PrompterAway, level_count, new_deep_alignment, new_head, new_prompter
from promptembedder.method import Prompter
from promptembedder.method import ReaderSide
from promptembedder.model.reader_state import ReaderEntry, chosen_entry, entries_of, load_side, save_side
from promptembedder.model.self_test import SELF_TEST_NAME, SelfTest
from promptembedder.method import new_text_readout
from promptembedder.method import restore_tensors, trained_state
from promptembedder.method import AlignmentConfig, LinearAlignment, LinearMap, VocabularyAlignment
from promptembedder.types import Tensor
from promptembedder.storage import Manifest, from_mapping, read_manifest, versions, write_manifest
from promptembedder.storage.tensors import load_tensors, save_tensors

__all__ = [
    "KIND",
    "backbone_ref",
    "load_parts",
    "manifest_on",
    "model_config",
    "put_away",
    "restore_parts",
    "same_backbone",
    "save_parts",
    "side_of",
]

KIND = "promptembedder"
PROMPTER_FILE = "prompter.safetensors"
_DELTA = "delta"


def save_parts(folder: Path, parts: Parts, *, self_test: SelfTest | None = None) -> None:
    """Write the parts' own weights into `folder`, those of further readers too, the manifest last.

    Parts that were loaded without their prompter cannot be saved: its weights are not in memory.

    Args:
        self_test: Of these parts, on their reader.

    Raises:
        ModelFormatError: There is no prompter.
    """
    away = parts.away if parts.prompter is None else put_away(parts.prompter)
    if away is None:
        raise ModelFormatError(
            "the model was loaded without its prompter and cannot be saved. Load it with the prompter."
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / PROMPTER_FILE, away.state)
    entries = [save_side(folder, side, place) for place, side in enumerate([side_of(parts), *parts.others])]
    if self_test is not None:
        self_test.write(folder)
    first, *others = entries
    own = [PROMPTER_FILE, *([SELF_TEST_NAME] if self_test is not None else [])]
    manifest = Manifest(
        kind=KIND,
        config=first.config,
        backbones={"prompter": dict(away.ref), "reader": first.backbone},
        instructions=first.instructions,
        files=dict.fromkeys([*own, *(name for entry in entries for name in entry.files)], ""),
        readers=[dataclasses.asdict(entry) for entry in others],
        provenance=dict(versions()),
    )
    write_manifest(folder, manifest)


def load_parts(
    folder: Path,
    *,
    reader: str | None = None,
    quantization: str | None = None,
    cache_folder: Path | None = None,
    with_prompter: bool = True,
) -> Parts:
    """The parts that `save_parts` wrote, on the backbones they were trained with.

    Args:
        reader: Which of the model's readers, as its backbone string; None: the one it was saved with.
        quantization: Of the reader, instead of what it was trained with; see `BackboneConfig`.
        with_prompter: False leaves the prompter out: compiled instructions only, half the memory.

    Raises:
        ModelFormatError: The folder is torn, of a newer format, holds a baseline, has no such reader, or a backbone's
            weights have changed.
        BackboneError: A backbone is missing.
    """
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise ModelFormatError(f"{folder} holds a {manifest.kind}, not a {KIND}. Open it with open_model.")
    entry = chosen_entry(manifest, reader, folder)
    others = tuple(
        load_side(folder, one, model_config(_seen_from(manifest, one)))
        for one in entries_of(manifest)
        if one.alignment_file != entry.alignment_file
    )
    manifest = _seen_from(manifest, entry)
    config = model_config(manifest)
    if quantization is not None:
        config = dataclasses.replace(config, reader=dataclasses.replace(config.reader, quantization=quantization))
    frozen = same_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    found = load_tensors(folder / entry.alignment_file)
    dim_p = found["deep.down"].shape[0] if "deep.down" in found else 0
    prompter = None
    if with_prompter:
        backbone = same_backbone(config.prompter.backbone, manifest, "prompter", head=True, cache_folder=cache_folder)
        # trained with an anchor it keeps it, though the alignment to this reader may have no use for it
        prompter = new_prompter(backbone, config, anchored="anchor_delta" in load_tensors(folder / PROMPTER_FILE))
        restore_tensors(trained_state(prompter), folder / PROMPTER_FILE)
    compiled: dict[str, Tensor] = {}
    if entry.instructions:
        width = level_count(config, frozen) * frozen.dim
        shape = torch.Size([len(entry.instructions), config.num_soft_tokens, width])
        rows = load_tensors(folder / entry.soft_tokens_file, {"soft_tokens": shape})["soft_tokens"]
        compiled = dict(zip(entry.instructions, rows, strict=True))
    parts = Parts(
        config=config,
        reader=frozen,
        alignment=_new_alignment(found, config.alignment, frozen.dim),
        deep=new_deep_alignment(config, dim_p, frozen),
        readout=new_text_readout(config, frozen, centred=False),
        head=new_head(config, frozen),
        prompter=prompter,
        compiled=compiled,
        others=others,
    )
    _restore_alignment(parts, folder / entry.alignment_file)
    return parts


def restore_parts(parts: Parts, folder: Path) -> None:
    """Copy the trained weights of a saved model into `parts`, in place; its backbones are not loaded.

    Raises:
        ModelFormatError: The folder is torn or holds another model's weights.
    """
    entry = entries_of(read_manifest(folder))[0]
    if parts.prompter is not None:
        restore_tensors(trained_state(parts.prompter), folder / PROMPTER_FILE)
    _restore_alignment(parts, folder / entry.alignment_file)


def side_of(parts: Parts) -> ReaderSide:
    """The reader's half of the parts as it is now: later training of theirs does not reach it."""
    return ReaderSide(
        config=parts.config,
        ref=backbone_ref(parts.reader),
        state={
            name: tensor.detach().cpu().clone()
            for name, tensor in _alignment_state(parts).items()
            if name != _DELTA or bool(tensor.any())  # as wide as the map itself, and zero once it has settled
        },
        compiled=parts.compiled,
    )


def put_away(prompter: Prompter) -> PrompterAway:
    """What a save needs of the prompter, without its backbone."""
    state = {name: weight.detach().cpu().clone() for name, weight in trained_state(prompter).items()}
    return PrompterAway(ref=backbone_ref(prompter.backbone), state=state)


def manifest_on(manifest: Manifest, reader: str | None, folder: Path) -> Manifest:
    """The manifest of the model in `folder` as if it opened with this reader; None: as it is.

    Raises:
        ModelFormatError: The model was never moved to this reader.
    """
    return manifest if reader is None else _seen_from(manifest, chosen_entry(manifest, reader, folder))


def _seen_from(manifest: Manifest, entry: ReaderEntry) -> Manifest:
    backbones = {**manifest.backbones, "reader": entry.backbone}
    return dataclasses.replace(manifest, config=entry.config, backbones=backbones, instructions=entry.instructions)


def _restore_alignment(parts: Parts, path: Path) -> None:
    state = _alignment_state(parts)
    if _DELTA in state and _DELTA not in load_tensors(path):
        with torch.no_grad():
            state.pop(_DELTA).zero_()
    restore_tensors(state, path)


def _alignment_state(parts: Parts) -> dict[str, Tensor]:
    """Everything that belongs to the reader's side: alignment, deeper alignments, readout, head."""
    state = dict(parts.alignment.state_dict())
    for name, module in (("deep", parts.deep), ("readout", parts.readout), ("head", parts.head)):
        if module is not None:
            state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return state


def _new_alignment(found: dict[str, Tensor], config: AlignmentConfig, dim_r: int) -> Alignment:
    """An alignment of the size of the saved one, its values still to be restored."""
    rows = len(found.get("base", found.get("source_ids", ())))  # the prompter's width, or how many strings are shared
    if config.kind == "vocabulary":
        ids = torch.zeros(rows, dtype=torch.long)
        return VocabularyAlignment(ids, ids, norm=0.0)
    return LinearAlignment(LinearMap(torch.zeros(rows, dim_r), torch.zeros(dim_r)), rank=config.rank)


def model_config(manifest: Manifest) -> ModelConfig:
    """The configuration in a manifest; settings that did not exist yet are what the model was trained with.

    Raises:
        ModelFormatError: A part of it is no mapping, or the reader's depth is missing.
        ConfigError: A setting is unknown or out of range.
    """
    saved = _mapping(manifest.config.get("model", manifest.config), "config")
    config = {"deep_every": 0, "text_weight": 0.0, "text_rank": 0, "reader": {}, "prompter": {}, **saved}
    if "text_rank" not in saved and config["text_weight"] and config.get("text_layers") is None:
        layers = manifest.backbones.get("reader", {}).get("layers")
        if not isinstance(layers, int):
            raise ModelFormatError(f"the manifest gives the reader {shown(layers)} layers. Save the model again.")
        config["text_layers"] = round(0.6 * layers)
    config["reader"] = {"text_start": "", **_mapping(config["reader"], "reader")}
    prompter = _mapping(config["prompter"], "prompter")
    backbone = {"text_start": "", **_mapping(prompter.get("backbone", {}), "prompter.backbone")}
    config["prompter"] = {**prompter, "backbone": backbone}
    return from_mapping(ModelConfig, config)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelFormatError(
            f"the manifest's {name} is {shown(value)}, no mapping. Save or download the model again."
        )
    return value


def backbone_ref(backbone: Backbone) -> dict[str, Any]:
    """What a manifest remembers of a backbone."""
    return dataclasses.asdict(backbone.ref)


def same_backbone(
    config: BackboneConfig, manifest: Manifest, role: str, *, head: bool, cache_folder: Path | None
) -> Backbone:
    """The backbone of `role`, refused unless its weights are those of the training."""
    backbone = load_backbone(config, head=head, cache_folder=cache_folder)
    trained_on = manifest.backbones.get(role, {}).get("fingerprint")
    if backbone.ref.fingerprint != trained_on:
        raise ModelFormatError(
            f"the weights of {role} {config.source!r} are {backbone.ref.fingerprint}, the model was trained on "
            f"{trained_on}. Restore the old weights, or train again on the new ones."
        )
    return backbone
