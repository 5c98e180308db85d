"""Identity of a saved model: a hash of everything that determines its vectors."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.method import ModelConfig
from promptembedder.model.checkpoint import PROMPTER_FILE, manifest_on, model_config
from promptembedder.model.reader_state import find_reader
from promptembedder.storage import MANIFEST_NAME, Manifest, file_sha256, read_manifest, to_mapping

__all__ = ["ModelIdentity", "model_identity"]


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Hashes that identify a saved model on one of its readers.

    Attributes:
        sha256: Hash of what determines the vectors: weights files, configuration and backbones. Compiling instructions
            or editing the model card does not change it.
        manifest_sha256: Hash of the manifest file, which identified a model in tables and shards before `sha256` did.
        reader: Backbone string of the reader.
    """

    sha256: str
    manifest_sha256: str
    reader: str


def model_identity(folder: Path, *, reader: str | None = None) -> ModelIdentity:
    """Compute the identity of the model saved in `folder`.

    Args:
        reader: Backbone string of the reader. If None, the reader that the model was saved with.

    Raises:
        ModelFormatError: If the folder is not a complete saved model, or if it has no alignment for this reader.
    """
    manifest = read_manifest(folder)
    weights = {PROMPTER_FILE, find_reader(manifest, reader, folder).alignment_file}
    chosen = manifest_on(manifest, reader, folder)
    content = {
        "kind": manifest.kind,
        "weights": {name: digest for name, digest in sorted(manifest.files.items()) if name in weights},
        "config": _without_defaults(to_mapping(model_config(chosen)), to_mapping(ModelConfig())),
        "backbones": {role: _weights_of(identity) for role, identity in sorted(_backbones(chosen).items())},
    }
    serialized = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return ModelIdentity(
        sha256=hashlib.sha256(serialized.encode()).hexdigest(),
        manifest_sha256=file_sha256(folder / MANIFEST_NAME),
        reader=str(chosen.backbones["reader"]["source"]),
    )


def _backbones(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {role: identity for role, identity in manifest.backbones.items() if role in ("prompter", "reader")}


def _weights_of(identity: dict[str, Any]) -> dict[str, Any]:
    """Select the fields that identify a backbone's weights, without the path or revision of their source."""
    if identity.get("fingerprint") is None:
        return identity
    return {name: identity.get(name) for name in ("fingerprint", "dtype", "layers")}


def _without_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields at their default, so that a field added in a later version does not change the hash."""
    changed: dict[str, Any] = {}
    for name, value in config.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _without_defaults(value, default)
            if value:
                changed[name] = value
        elif value != default:
            changed[name] = value
    return changed
