"""Saving and restoring a baseline: its trained weights and a manifest; never a frozen backbone."""

from pathlib import Path

from promptembedder.models.checkpoint import backbone_ref
from promptembedder.models.config import BaselineConfig, ModelConfig
from promptembedder.models.text_encoder import TextEncoder
from promptembedder.models.trained_state import restore_trained, trained_state
from promptembedder.storage import Manifest, read_manifest, save_tensors, to_mapping, versions, write_manifest

__all__ = ["BASELINE_KIND", "restore_baseline", "save_baseline"]

BASELINE_KIND = "baseline"
WEIGHTS_FILE = "baseline.safetensors"


def save_baseline(folder: Path, encoder: TextEncoder, settings: ModelConfig, baseline: BaselineConfig) -> None:
    """Write the encoder's trained weights into `folder`, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = trained_state(encoder)
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


def restore_baseline(encoder: TextEncoder, folder: Path) -> None:
    """Copy the trained weights of a saved baseline into `encoder`, in place.

    Raises:
        ModelFormatError: The folder is torn or holds another model's weights.
    """
    read_manifest(folder)
    if trained_state(encoder):
        restore_trained(encoder, folder / WEIGHTS_FILE)
