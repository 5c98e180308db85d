"""Saving and loading a dual encoder: trained weights, compiled soft tokens and a manifest; never a backbone."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbones import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import ModelFormatError
from promptembedder.models.config import ModelConfig
from promptembedder.models.parts import Alignment, Parts, new_deep_alignment, new_prompter
from promptembedder.models.soft_token_encoder import level_count, new_head
from promptembedder.models.text_readout import new_text_readout
from promptembedder.models.trained_state import restore_trained, trained_state
from promptembedder.nn import LinearAlignment, LinearMap, VocabularyAlignment
from promptembedder.shapes import Tensor
from promptembedder.storage import (
    Manifest,
    from_mapping,
    load_tensors,
    read_manifest,
    save_tensors,
    to_mapping,
    versions,
    write_manifest,
)

__all__ = ["backbone_ref", "load_parts", "model_config", "restore_parts", "same_backbone", "save_parts"]

KIND = "promptembedder"
PROMPTER_FILE = "prompter.safetensors"
ALIGNMENT_FILE = "alignment.safetensors"
SOFT_TOKENS_FILE = "soft_tokens.safetensors"


def save_parts(folder: Path, parts: Parts) -> None:
    """Write the parts' own weights into `folder`, the manifest last.

    Parts that were loaded without their prompter cannot be saved: its weights are not in memory.

    Raises:
        ModelFormatError: There is no prompter.
    """
    if parts.prompter is None:
        raise ModelFormatError(
            "the model was loaded without its prompter and cannot be saved. Load it with the prompter."
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = [PROMPTER_FILE, ALIGNMENT_FILE]
    save_tensors(folder / PROMPTER_FILE, trained_state(parts.prompter))
    save_tensors(folder / ALIGNMENT_FILE, _alignment_state(parts))
    if parts.compiled:
        files.append(SOFT_TOKENS_FILE)
        save_tensors(folder / SOFT_TOKENS_FILE, {"soft_tokens": torch.stack(list(parts.compiled.values()))})
    manifest = Manifest(
        kind=KIND,
        config=to_mapping(parts.config),
        backbones={"prompter": backbone_ref(parts.prompter.backbone), "reader": backbone_ref(parts.reader)},
        instructions=list(parts.compiled),
        files=dict.fromkeys(files, ""),
        provenance=dict(versions()),
    )
    write_manifest(folder, manifest)


def load_parts(folder: Path, *, cache_folder: Path | None = None, with_prompter: bool = True) -> Parts:
    """The parts that `save_parts` wrote, on the backbones they were trained with.

    Args:
        with_prompter: False leaves the prompter out: compiled instructions only, half the memory.

    Raises:
        ModelFormatError: The folder is torn, of a newer format, holds a baseline, or a backbone's weights have changed.
        BackboneError: A backbone is missing.
    """
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise ModelFormatError(f"{folder} holds a {manifest.kind}, not a {KIND}. Open it with open_model.")
    config = model_config(manifest.config)
    reader = same_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    found = load_tensors(folder / ALIGNMENT_FILE)
    alignment = _new_alignment(found, config.alignment.kind, reader.dim)
    dim_p = found["deep.down"].shape[0] if "deep.down" in found else 0
    deep = new_deep_alignment(config, dim_p, reader)
    prompter = None
    if with_prompter:
        backbone = same_backbone(config.prompter.backbone, manifest, "prompter", head=True, cache_folder=cache_folder)
        prompter = new_prompter(backbone, config)
        restore_trained(prompter, folder / PROMPTER_FILE)
    compiled: dict[str, Tensor] = {}
    if manifest.instructions:
        width = level_count(config, reader) * reader.dim
        shape = torch.Size([len(manifest.instructions), config.num_soft_tokens, width])
        rows = load_tensors(folder / SOFT_TOKENS_FILE, {"soft_tokens": shape})["soft_tokens"]
        compiled = dict(zip(manifest.instructions, rows, strict=True))
    parts = Parts(
        config=config,
        reader=reader,
        alignment=alignment,
        deep=deep,
        readout=new_text_readout(config, reader, centred=False),
        head=new_head(config, reader),
        prompter=prompter,
        compiled=compiled,
    )
    _restore_alignment(parts, folder / ALIGNMENT_FILE)
    return parts


def restore_parts(parts: Parts, folder: Path) -> None:
    """Copy the trained weights of a saved model into `parts`, in place; its backbones are not loaded.

    Raises:
        ModelFormatError: The folder is torn or holds another model's weights.
    """
    read_manifest(folder)
    if parts.prompter is not None:
        restore_trained(parts.prompter, folder / PROMPTER_FILE)
    _restore_alignment(parts, folder / ALIGNMENT_FILE)


def _alignment_state(parts: Parts) -> dict[str, Tensor]:
    """Everything that belongs to the reader's side: alignment, deeper alignments, readout, head."""
    state = dict(parts.alignment.state_dict())
    for name, module in (("deep", parts.deep), ("readout", parts.readout), ("head", parts.head)):
        if module is not None:
            state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return state


@torch.no_grad()
def _restore_alignment(parts: Parts, path: Path) -> None:
    state = _alignment_state(parts)
    saved = load_tensors(path, {name: tensor.shape for name, tensor in state.items()})
    for name, tensor in state.items():  # views of the modules' own weights
        tensor.copy_(saved[name])


def _new_alignment(found: dict[str, Tensor], kind: str, dim_r: int) -> Alignment:
    """An alignment of the size of the saved one, its values still to be restored."""
    rows = len(found.get("base", found.get("source_ids", ())))  # the prompter's width, or how many strings are shared
    if kind == "vocabulary":
        ids = torch.zeros(rows, dtype=torch.long)
        return VocabularyAlignment(ids, ids, norm=0.0)
    return LinearAlignment(LinearMap(torch.zeros(rows, dim_r), torch.zeros(dim_r)))


def model_config(saved: dict[str, Any]) -> ModelConfig:
    """The configuration in a manifest; settings that did not exist yet are what the model was trained with."""
    config = {"deep_every": 0, "text_weight": 0.0, "reader": {}, "prompter": {}, **saved}
    config["reader"] = {"text_start": "", **config["reader"]}
    backbone = {"text_start": "", **config["prompter"].get("backbone", {})}
    config["prompter"] = {**config["prompter"], "backbone": backbone}
    return from_mapping(ModelConfig, config)


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
