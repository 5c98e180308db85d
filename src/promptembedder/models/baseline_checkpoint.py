"""Saving and restoring a baseline: its trained weights and a manifest; never a frozen backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from promptembedder.backbones import Backbone
from promptembedder.errors import ModelFormatError
from promptembedder.models.checkpoint import backbone_ref, model_config, same_backbone
from promptembedder.models.config import BaselineConfig, ModelConfig
from promptembedder.models.text_encoder import TextEncoder
from promptembedder.models.trained_state import restore_tensors, saved_state
from promptembedder.storage import (
    Manifest,
    from_mapping,
    read_manifest,
    to_mapping,
    versions,
    write_manifest,
)
from promptembedder.storage.tensors import save_tensors

__all__ = ["BASELINE_KIND", "load_baseline", "restore_baseline", "save_baseline"]

BASELINE_KIND = "baseline"

Encoder = TypeVar("Encoder", bound=TextEncoder)

WEIGHTS_FILE = "baseline.safetensors"


def save_baseline(folder: Path, encoder: TextEncoder, settings: ModelConfig, baseline: BaselineConfig) -> None:
    """Write what training and fitting gave the encoder into `folder`, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = saved_state(encoder)
    if state:
        save_tensors(folder / WEIGHTS_FILE, state)
    manifest = Manifest(
        kind=BASELINE_KIND,
        config={"model": to_mapping(settings), "baseline": to_mapping(baseline)},
        backbones={"reader": backbone_ref(encoder.reader)},
        files={WEIGHTS_FILE: ""} if state else {},
        provenance=dict(versions()),
    )
    write_manifest(folder, manifest)


def load_baseline(
    folder: Path, make: Callable[[ModelConfig, BaselineConfig, Backbone], Encoder], *, cache_folder: Path | None = None
) -> Encoder:
    """The encoder that `save_baseline` wrote; `make` builds it untrained.

    Raises:
        ModelFormatError: The folder is torn, holds no baseline, or its backbone's weights have changed.
        BackboneError: The backbone is missing.
    """
    manifest = read_manifest(folder)
    if manifest.kind != BASELINE_KIND or not {"model", "baseline"} <= manifest.config.keys():
        raise ModelFormatError(f"{folder} holds a {manifest.kind}, not a baseline. Open it with open_model.")
    config = model_config(manifest)
    reader = same_backbone(config.reader, manifest, "reader", head=False, cache_folder=cache_folder)
    encoder = make(config, from_mapping(BaselineConfig, manifest.config["baseline"]), reader)
    restore_baseline(encoder, folder)
    return encoder


def restore_baseline(encoder: TextEncoder, folder: Path) -> None:
    """Copy the trained weights of a saved baseline into `encoder`, in place.

    Raises:
        ModelFormatError: The folder is torn or holds another model's weights.
    """
    read_manifest(folder)
    state = saved_state(encoder)
    if state:
        restore_tensors(state, folder / WEIGHTS_FILE)
