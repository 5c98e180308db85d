"""Load any saved model or sentence-transformers model by folder, name or hub id, and identify a saved one."""

import hashlib
import importlib.metadata
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers import SentenceTransformer

from promptembedder.backbone import BackboneConfig, hub_reachable, hub_refusal, load_backbone
from promptembedder.errors import ConfigError, ModelFormatError, WeightsError
from promptembedder.method import (
    PROMPTER_FILE,
    ModelConfig,
    find_reader,
    is_hub_id,
    manifest_on,
    model_config,
    read_self_test,
    saved_folder,
)
from promptembedder.method.checkpoint import KIND
from promptembedder.model.baselines import BaselineEmbedder, frozen_pooling
from promptembedder.model.embedder import PromptedSentenceTransformer, PromptEmbedder
from promptembedder.storage import MANIFEST_NAME, Manifest, file_sha256, read_manifest, to_mapping

__all__ = ["Encoder", "LoadedEncoder", "ModelIdentity", "check_self_test", "load_encoder", "model_identity"]

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """Model that maps each text to one embedding."""

    def encode(
        self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **kwargs: Any
    ) -> np.ndarray:
        """Embed the texts under the instruction `prompt`, float32 [texts dim]."""
        ...


def check_self_test(model: PromptEmbedder, folder: Path) -> float | None:
    """Return the cosine between the saved and the recomputed self-test embedding, or None without a self-test.

    Raises:
        WeightsError: If the embeddings differ by more than another machine explains, or if one is not finite.
        ModelFormatError: If the saved self-test is damaged.
    """
    saved, ref = read_self_test(folder), model.encoder.reader.identity
    if saved is None or saved.reader != ref.fingerprint:
        logger.info("the model brings no self-test for this reader")
        return None
    if model.encoder.prompter is None and saved.instruction not in model.encoder.store.compiled:
        return None
    now = model.encoder.self_test(saved.instruction)
    if now is None:
        raise WeightsError("the model's vectors are not finite. Load an earlier checkpoint, or use dtype float32.")
    cosine = saved.check(np.asarray(now.vector, dtype=np.float32), dtype=now.dtype)
    logger.info("self-test passed, cosine %.6f to the vector that was saved", cosine)
    return cosine


# (pooling, template) by WAY of frozen:WAY:BACKBONE
FROZEN_WAYS = {
    "mean": ("mean", "instruct"),
    "last": ("last", "instruct"),
    "prompteol": ("last", "prompteol"),
    "plain": ("mean", "plain"),
}


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """Encoder with its origin and its use of instructions.

    Attributes:
        takes_instructions: False for a model trained without instructions, which would only blur its embeddings.
        provenance: Origin of the model, for results files.
    """

    name: str
    model: SentenceTransformer
    takes_instructions: bool
    provenance: dict[str, str] = field(default_factory=dict)


def load_encoder(
    name: str,
    *,
    reader: str | None = None,
    quantization: str | None = None,
    early_exit_fraction: float | None = None,
    cache_folder: Path | None = None,
    device: str | None = None,
) -> LoadedEncoder:
    """Load the model called `name`.

    Args:
        name: Folder or hub id of a PromptEmbedder or baseline, `frozen:mean:BACKBONE` (also last, prompteol, plain),
            the distribution of an installed sentence-transformers model, or the folder or hub id of one.
        reader: For a transferred PromptEmbedder, the LLM to load it with.
        quantization: For a PromptEmbedder, the quantization of its reader.
        early_exit_fraction: For a PromptEmbedder, the fraction of its reader's layers that texts run through.

    Raises:
        ModelFormatError: If the model has none of these kinds, is damaged, or cannot be loaded with the reader.
        BackboneError: If a backbone is missing.
        ConfigError: If the frozen baseline is unknown, or if `early_exit_fraction` is out of range.
    """
    offline = is_hub_id(name) and not Path(name).exists() and not hub_reachable()
    folder = None if name.startswith("frozen:") else _own_folder(name, offline=offline)
    is_dual = folder is not None and read_manifest(folder).kind == KIND
    if reader is not None and not is_dual:
        raise ModelFormatError(f"{name} is no PromptEmbedder, so it has one reader. Leave {reader!r} out.")
    if quantization is not None and not is_dual:
        raise ModelFormatError(f"{name} is no PromptEmbedder: its reader cannot be quantised here. Leave it out.")
    if early_exit_fraction is not None and not is_dual:
        raise ModelFormatError(
            f"{name} is no PromptEmbedder: its texts leave no layer early. Leave {early_exit_fraction} out."
        )
    if name.startswith("frozen:"):
        return _frozen(name, cache_folder, device)
    if folder is not None:
        opened: PromptedSentenceTransformer
        if is_dual:
            opened = PromptEmbedder.from_pretrained(
                folder, reader=reader, quantization=quantization, cache_folder=cache_folder, device=device
            )
            opened.early_exit_fraction = (
                opened.early_exit_fraction if early_exit_fraction is None else early_exit_fraction
            )
        else:
            opened = BaselineEmbedder.from_pretrained(folder, cache_folder=cache_folder, device=device)
        fingerprint = opened.text_encoder.reader.identity.fingerprint
        return LoadedEncoder(name=name, model=opened, takes_instructions=True, provenance={"reader": fingerprint})
    return _load_sentence_transformer(name, device, offline=offline)


def _own_folder(name: str, *, offline: bool) -> Path | None:
    """Return the folder of a model that this library saved, or None for any other model. Hub ids are downloaded."""
    folder = Path(name)
    if is_hub_id(name) and not folder.exists():
        try:
            folder = Path(snapshot_download(name, allow_patterns=[MANIFEST_NAME], local_files_only=offline))
            if (folder / MANIFEST_NAME).is_file():
                folder = saved_folder(name)
        except (OSError, ValueError, HfHubHTTPError):  # no such model: sentence-transformers raises the error
            return None
    return folder if (folder / MANIFEST_NAME).is_file() else None


def _frozen(name: str, cache_folder: Path | None, device: str | None) -> LoadedEncoder:
    way, _, backbone = name.removeprefix("frozen:").partition(":")
    if way not in FROZEN_WAYS or not backbone:
        raise ConfigError(f"cannot read {name!r}. Write frozen:WAY:BACKBONE, WAY one of {', '.join(FROZEN_WAYS)}.")
    pooling, template = FROZEN_WAYS[way]
    reader = load_backbone(BackboneConfig(source=backbone), head=False, cache_folder=cache_folder)
    model = frozen_pooling(reader, pooling=pooling, template=template)
    if device is not None:
        model = model.to(device)
    provenance = {"reader": reader.identity.fingerprint}
    return LoadedEncoder(name=name, model=model, takes_instructions=template != "plain", provenance=provenance)


def _load_sentence_transformer(name: str, device: str | None, *, offline: bool) -> LoadedEncoder:
    """Load any sentence-transformers model without running code from its repository."""
    folder, provenance = _installed(name), {"source": name}
    if folder is not None:
        provenance["version"] = importlib.metadata.version(name)
    elif Path(name).exists() and not (Path(name) / "modules.json").is_file():
        raise ModelFormatError(
            f"{name} is no model: it has neither {MANIFEST_NAME} nor modules.json. Give a folder that save wrote."
        )
    elif not Path(name).exists() and name.startswith((".", "/", "~")):
        raise ModelFormatError(f"{name} does not exist. Check the path.")
    try:
        model = SentenceTransformer(str(folder or name), device=device, local_files_only=offline)
    except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError) as error:
        refusal = hub_refusal(name, error, instead="a local folder") if is_hub_id(name) else None
        reason = refusal or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFormatError(f"cannot open {name!r} as a sentence-transformers model: {reason}") from error
    return LoadedEncoder(name=name, model=model, takes_instructions=False, provenance=provenance)


def _installed(name: str) -> Path | None:
    """Return the model's folder in an installed distribution, from its file list and without importing it."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    matches = [file for file in files if file.name == "modules.json"]
    return Path(str(matches[0].locate())).parent if matches else None


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
