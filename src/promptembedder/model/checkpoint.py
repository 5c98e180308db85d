"""Save and load a dual encoder: trained weights, compiled soft tokens and a manifest, but never a backbone."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbone import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import ModelFormatError, short_repr
from promptembedder.method import (
    Alignment,
    AlignmentConfig,
    EncoderParts,
    LinearAlignment,
    LinearMap,
    ModelConfig,
    Prompter,
    PrompterConfig,
    PrompterSnapshot,
    ReaderState,
    VocabularyAlignment,
    build_deep_alignment,
    build_gate,
    build_prompter,
    build_text_pooling,
    gated_directions,
    num_prompt_layers,
    restore_tensors,
    saved_state,
)
from promptembedder.model.reader_state import (
    ReaderRecord,
    find_reader,
    load_reader_state,
    reader_records,
    save_reader_state,
)
from promptembedder.model.self_test import SELF_TEST_NAME, SelfTest
from promptembedder.storage import Manifest, from_mapping, read_manifest, versions, write_manifest
from promptembedder.storage.migration import migrate_conditioning
from promptembedder.storage.tensors import load_tensors, save_tensors
from promptembedder.types import Tensor

__all__ = [
    "KIND",
    "backbone_identity",
    "load_parts",
    "load_verified_backbone",
    "manifest_on",
    "model_config",
    "reader_state_of",
    "restore_parts",
    "save_parts",
    "snapshot_prompter",
]

KIND = "promptembedder"
PROMPTER_FILE = "prompter.safetensors"
_DELTA = "delta"


def save_parts(folder: Path, parts: EncoderParts, *, self_test: SelfTest | None = None) -> None:
    """Write the trained weights of the parts and of all further readers into `folder`, the manifest last.

    Args:
        self_test: Self-test of these parts on their reader.

    Raises:
        ModelFormatError: If the parts were loaded without their prompter, whose weights are then not in memory.
    """
    away = parts.prompter_snapshot if parts.prompter is None else snapshot_prompter(parts.prompter)
    if away is None:
        raise ModelFormatError(
            "the model was loaded without its prompter and cannot be saved. Load it with the prompter."
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / PROMPTER_FILE, away.state)
    entries = [
        save_reader_state(folder, side, index) for index, side in enumerate([reader_state_of(parts), *parts.others])
    ]
    if self_test is not None:
        self_test.write(folder)
    first, *others = entries
    shared = [PROMPTER_FILE, *([SELF_TEST_NAME] if self_test is not None else [])]
    manifest = Manifest(
        kind=KIND,
        config=first.config,
        backbones={"prompter": dict(away.identity), "reader": first.backbone},
        instructions=first.instructions,
        files=dict.fromkeys([*shared, *(name for entry in entries for name in entry.files)], ""),
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
) -> EncoderParts:
    """Load the parts that `save_parts` wrote, on the backbones of their training.

    Args:
        reader: Backbone string of one of the model's readers. If None, the reader that the model was saved with.
        quantization: Quantization of the reader, see `BackboneConfig`. If None, that of the training.
        with_prompter: If False, load compiled instructions only, in half the memory.

    Raises:
        ModelFormatError: If the folder is incomplete, has a newer format, contains a baseline or has no such reader, or
            if the weights of a backbone have changed.
        BackboneError: If a backbone is missing.
    """
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise ModelFormatError(f"{folder} holds a {manifest.kind}, not a {KIND}. Open it with load_encoder.")
    entry = find_reader(manifest, reader, folder)
    others = tuple(
        load_reader_state(folder, one, model_config(_seen_from(manifest, one)))
        for one in reader_records(manifest)
        if one.alignment_file != entry.alignment_file
    )
    manifest = _seen_from(manifest, entry)
    config = model_config(manifest)
    if quantization is not None:
        config = dataclasses.replace(config, reader=dataclasses.replace(config.reader, quantization=quantization))
    frozen = load_verified_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    tensors = load_tensors(folder / entry.alignment_file)
    dim_p = tensors["deep.down"].shape[0] if "deep.down" in tensors else 0
    if "gate.down" in tensors:
        dim_p = tensors["gate.down"].shape[0] // config.num_soft_tokens
    prompter = None
    if with_prompter:
        backbone = load_verified_backbone(
            config.prompter.backbone, manifest, "prompter", head=True, cache_folder=cache_folder
        )
        # a trained soft prompt is kept even if the alignment to this reader does not use it
        prompter = build_prompter(
            backbone, config, train_soft_prompt="soft_prompt_delta" in load_tensors(folder / PROMPTER_FILE)
        )
        restore_tensors(saved_state(prompter), folder / PROMPTER_FILE)
    compiled: dict[str, Tensor] = {}
    if entry.instructions:
        width = num_prompt_layers(config, frozen) * frozen.dim
        width += gated_directions(config, frozen) // config.num_soft_tokens
        shape = torch.Size([len(entry.instructions), config.num_soft_tokens, width])
        rows = load_tensors(folder / entry.soft_tokens_file, {"soft_tokens": shape})["soft_tokens"]
        compiled = dict(zip(entry.instructions, rows, strict=True))
    parts = EncoderParts(
        config=config,
        reader=frozen,
        alignment=_new_alignment(tensors, config.alignment, frozen.dim),
        deep=build_deep_alignment(config, dim_p, frozen),
        text_pooling=build_text_pooling(config, frozen, centred=False),
        gate=build_gate(config, dim_p, frozen),
        prompter=prompter,
        compiled=compiled,
        others=others,
    )
    _restore_alignment(parts, folder / entry.alignment_file)
    return parts


def restore_parts(parts: EncoderParts, folder: Path) -> None:
    """Copy the trained weights of a saved model into `parts` in place, without loading its backbones.

    Raises:
        ModelFormatError: If the folder is incomplete or contains the weights of another model.
    """
    entry = reader_records(read_manifest(folder))[0]
    if parts.prompter is not None:
        restore_tensors(saved_state(parts.prompter), folder / PROMPTER_FILE)
    _restore_alignment(parts, folder / entry.alignment_file)


def reader_state_of(parts: EncoderParts) -> ReaderState:
    """Return a copy of the current reader state of the parts, independent of later training."""
    return ReaderState(
        config=parts.config,
        identity=backbone_identity(parts.reader),
        state={
            name: tensor.detach().cpu().clone()
            for name, tensor in _alignment_state(parts).items()
            if name != _DELTA or bool(tensor.any())  # as large as the map itself, and zero once merged
        },
        compiled=parts.compiled,
    )


def snapshot_prompter(prompter: Prompter) -> PrompterSnapshot:
    """Return the prompter's trained weights and identity, without its backbone."""
    state = {name: weight.detach().cpu().clone() for name, weight in saved_state(prompter).items()}
    return PrompterSnapshot(identity=backbone_identity(prompter.backbone), state=state)


def manifest_on(manifest: Manifest, reader: str | None, folder: Path) -> Manifest:
    """Return the manifest of the model in `folder` for one of its readers. If `reader` is None, the unchanged manifest.

    Raises:
        ModelFormatError: If the model has no alignment to this reader.
    """
    return manifest if reader is None else _seen_from(manifest, find_reader(manifest, reader, folder))


def _seen_from(manifest: Manifest, entry: ReaderRecord) -> Manifest:
    backbones = {**manifest.backbones, "reader": entry.backbone}
    return dataclasses.replace(manifest, config=entry.config, backbones=backbones, instructions=entry.instructions)


def _restore_alignment(parts: EncoderParts, path: Path) -> None:
    state = _alignment_state(parts)
    if _DELTA in state and _DELTA not in load_tensors(path):
        with torch.no_grad():
            state.pop(_DELTA).zero_()
    restore_tensors(state, path)


def _alignment_state(parts: EncoderParts) -> dict[str, Tensor]:
    """Return all tensors of the reader's side: alignment, deep alignments, text pooling and gate."""
    state = dict(parts.alignment.state_dict())
    modules = {"deep": parts.deep, "text_pooling": parts.text_pooling, "gate": parts.gate}
    for name, module in modules.items():
        if module is not None:
            state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return state


def _new_alignment(tensors: dict[str, Tensor], config: AlignmentConfig, dim_r: int) -> Alignment:
    """Build an alignment with the shape of the saved one. Its values are restored later."""
    # dimension of the prompter, or number of shared strings
    rows = len(tensors.get("base", tensors.get("source_ids", ())))
    if config.kind == "vocabulary":
        ids = torch.zeros(rows, dtype=torch.long)
        return VocabularyAlignment(ids, ids, norm=0.0)
    return LinearAlignment(LinearMap(torch.zeros(rows, dim_r), torch.zeros(dim_r)), rank=config.rank)


def model_config(manifest: Manifest) -> ModelConfig:
    """Return the configuration in a manifest. Fields that its version did not have get the values of the training.

    Raises:
        ModelFormatError: If a part of the configuration is not a mapping, or if the reader's depth is missing.
        ConfigError: If a setting is unknown or out of range.
    """
    saved = migrate_conditioning(
        _mapping(manifest.config.get("model", manifest.config), "config"), template=PrompterConfig().template
    )
    config = {
        "deep_prompt_interval": 0,
        "text_pooling_weight": 0.0,
        "whitening_rank": 0,
        "reader": {},
        "prompter": {},
        **saved,
    }
    if "whitening_rank" not in saved and config["text_pooling_weight"] and config.get("text_pooling_layer") is None:
        layers = manifest.backbones.get("reader", {}).get("layers")
        if not isinstance(layers, int):
            raise ModelFormatError(f"the manifest gives the reader {short_repr(layers)} layers. Save the model again.")
        config["text_pooling_layer"] = round(0.6 * layers)
    config["reader"] = {"text_start": "", **_mapping(config["reader"], "reader")}
    prompter = _mapping(config["prompter"], "prompter")
    backbone = {"text_start": "", **_mapping(prompter.get("backbone", {}), "prompter.backbone")}
    config["prompter"] = {**prompter, "backbone": backbone}
    return from_mapping(ModelConfig, config)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelFormatError(
            f"the manifest's {name} is {short_repr(value)}, no mapping. Save or download the model again."
        )
    return value


def backbone_identity(backbone: Backbone) -> dict[str, Any]:
    """Return the identity of a backbone as a mapping for the manifest."""
    return dataclasses.asdict(backbone.identity)


def load_verified_backbone(
    config: BackboneConfig, manifest: Manifest, role: str, *, head: bool, cache_folder: Path | None
) -> Backbone:
    """Load the backbone of `role` and check that its weights are those of the training."""
    backbone = load_backbone(config, head=head, cache_folder=cache_folder)
    trained_on = manifest.backbones.get(role, {}).get("fingerprint")
    if backbone.identity.fingerprint != trained_on:
        raise ModelFormatError(
            f"the weights of {role} {config.source!r} are {backbone.identity.fingerprint}, the model was trained on "
            f"{trained_on}. Restore the old weights, or train again on the new ones."
        )
    return backbone
