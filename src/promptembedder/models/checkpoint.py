"""Saving and loading a dual encoder: trained weights, compiled soft tokens and a manifest; never a backbone."""

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from promptembedder.backbones import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import ModelFormatError
from promptembedder.models.config import ModelConfig
from promptembedder.models.parts import Alignment, Parts, new_prompter
from promptembedder.nn import LinearAlignment, LinearMap, VocabularyAlignment
from promptembedder.shapes import Tensor
from promptembedder.storage import (
    Manifest,
    from_mapping,
    load_tensors,
    read_manifest,
    save_tensors,
    to_mapping,
    write_manifest,
)

__all__ = ["load_parts", "restore_parts", "save_parts", "trained_state"]

PROMPTER_FILE = "prompter.safetensors"
ALIGNMENT_FILE = "alignment.safetensors"
SOFT_TOKENS_FILE = "soft_tokens.safetensors"


def trained_state(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that training changes, by name, in a fixed order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


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
    save_tensors(folder / ALIGNMENT_FILE, parts.alignment.state_dict())
    if parts.compiled:
        files.append(SOFT_TOKENS_FILE)
        save_tensors(folder / SOFT_TOKENS_FILE, {"soft_tokens": torch.stack(list(parts.compiled.values()))})
    manifest = Manifest(
        config=to_mapping(parts.config),
        backbones={"prompter": _ref(parts.prompter.backbone), "reader": _ref(parts.reader)},
        instructions=list(parts.compiled),
        files=dict.fromkeys(files, ""),
        provenance={name: version(name) for name in ("promptembedder", "torch", "transformers")},
    )
    write_manifest(folder, manifest)


def load_parts(folder: Path, *, cache_folder: Path | None = None, with_prompter: bool = True) -> Parts:
    """The parts that `save_parts` wrote, on the backbones they were trained with.

    Args:
        with_prompter: False leaves the prompter out: compiled instructions only, half the memory.

    Raises:
        ModelFormatError: The folder is torn, of a newer format, or a backbone's weights have changed since.
        BackboneError: A backbone is missing.
    """
    manifest = read_manifest(folder)
    config = from_mapping(ModelConfig, manifest.config)
    reader = _same_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    alignment = _load_alignment(folder / ALIGNMENT_FILE, config.alignment.kind, reader.dim)
    prompter = None
    if with_prompter:
        backbone = _same_backbone(config.prompter.backbone, manifest, "prompter", head=True, cache_folder=cache_folder)
        prompter = new_prompter(backbone, config)
        _restore_trained(prompter, folder / PROMPTER_FILE)
    compiled: dict[str, Tensor] = {}
    if manifest.instructions:
        shape = torch.Size([len(manifest.instructions), config.num_soft_tokens, reader.dim])
        rows = load_tensors(folder / SOFT_TOKENS_FILE, {"soft_tokens": shape})["soft_tokens"]
        compiled = dict(zip(manifest.instructions, rows, strict=True))
    return Parts(config=config, reader=reader, alignment=alignment, prompter=prompter, compiled=compiled)


def restore_parts(parts: Parts, folder: Path) -> None:
    """Copy the trained weights of a saved model into `parts`, in place; its backbones are not loaded.

    Raises:
        ModelFormatError: The folder is torn or holds another model's weights.
    """
    read_manifest(folder)
    if parts.prompter is not None:
        _restore_trained(parts.prompter, folder / PROMPTER_FILE)
    saved = load_tensors(folder / ALIGNMENT_FILE, {name: t.shape for name, t in parts.alignment.state_dict().items()})
    parts.alignment.load_state_dict(saved)


@torch.no_grad()
def _restore_trained(module: nn.Module, path: Path) -> None:
    state = trained_state(module)
    saved = load_tensors(path, {name: weight.shape for name, weight in state.items()})
    for name, weight in state.items():
        weight.copy_(saved[name])


def _load_alignment(path: Path, kind: str, dim_r: int) -> Alignment:
    found = load_tensors(path)
    rows = len(found.get("base", found.get("source_ids", ())))  # the prompter's width, or how many strings are shared
    shapes = {
        "linear": {"base": (rows, dim_r), "delta": (rows, dim_r), "bias": (dim_r,)},
        "vocabulary": {"source_ids": (rows,), "target_ids": (rows,), "norm": ()},
    }
    saved = load_tensors(path, {name: torch.Size(shape) for name, shape in shapes[kind].items()})
    if kind == "vocabulary":
        return VocabularyAlignment(saved["source_ids"], saved["target_ids"], norm=float(saved["norm"]))
    alignment = LinearAlignment(LinearMap(saved["base"], saved["bias"]))
    alignment.load_state_dict(saved)
    return alignment


def _ref(backbone: Backbone) -> dict[str, Any]:
    return dataclasses.asdict(backbone.ref)


def _same_backbone(
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
