"""The manifest of a saved model: what it is made of, and the hash of each of its files."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptembedder.errors import ModelFormatError
from promptembedder.storage.provenance import file_sha256

__all__ = ["FORMAT", "MANIFEST_NAME", "Manifest", "read_manifest", "write_manifest"]

FORMAT = 2  # 2: several readers; a model with one is still written as 1
MANIFEST_NAME = "promptembedder.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a loader must know before it reads a tensor.

    Attributes:
        config: The model's configuration.
        backbones: By role (`prompter`, `reader`): source, revision, dtype, layers, fingerprint.
        instructions: Those with compiled soft tokens, in the order of the tensor's rows.
        files: sha256 by file name, relative to the folder.
        kind: What was saved: a `promptembedder` or a `baseline`.
        readers: Further readers that the model can be opened on, as mappings; their files are among `files`.
        provenance: How the model came about: library versions, recipe, data; informational.
    """

    config: dict[str, Any]
    backbones: dict[str, dict[str, Any]]
    instructions: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    kind: str = "promptembedder"
    readers: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest last and in one step: a folder without one, or with wrong hashes, is torn."""
    files = {name: file_sha256(folder / name) for name in manifest.files}
    content: dict[str, Any] = {
        "format": FORMAT if manifest.readers else 1,
        "kind": manifest.kind,
        "config": manifest.config,
        "backbones": manifest.backbones,
        "instructions": manifest.instructions,
        "files": files,
        **({"readers": manifest.readers} if manifest.readers else {}),
        "provenance": manifest.provenance,
    }
    scratch = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved model, its files present and hashed.

    Raises:
        ModelFormatError: No manifest, a newer format, or a file that is missing or changed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelFormatError(f"{folder} is no saved model: it has no {MANIFEST_NAME}. Give a folder that save wrote.")
    content = _parsed(path)
    version = content.get("format")
    if not (isinstance(version, int) and 1 <= version <= FORMAT):
        newer = isinstance(version, int) and version > FORMAT
        mend = "Upgrade promptembedder." if newer else "The manifest is damaged; save or download the model again."
        raise ModelFormatError(f"{folder} has format {version!r}, this version reads formats up to {FORMAT}. {mend}")
    try:
        manifest = Manifest(**{key: value for key, value in content.items() if key != "format"})
    except TypeError as error:
        raise ModelFormatError(f"{path} is damaged: {error}. Save or download the model again.") from error
    _check_types(path, manifest)
    for name, digest in manifest.files.items():
        _check_file(folder, name, digest)
    return manifest


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{path} is damaged: {error}. Save or download the model again.") from error
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} is damaged: it holds no object. Save or download the model again.")
    return content


def _check_types(path: Path, manifest: Manifest) -> None:
    texts = manifest.instructions
    fits = {
        "kind": isinstance(manifest.kind, str),
        "config": isinstance(manifest.config, dict),
        "backbones": _is_mapping_to(dict, manifest.backbones),
        "instructions": isinstance(texts, list) and all(isinstance(text, str) for text in texts),
        "files": _is_mapping_to(str, manifest.files),
        "readers": isinstance(manifest.readers, list) and all(isinstance(one, dict) for one in manifest.readers),
    }
    wrong = [name for name, fine in fits.items() if not fine]
    if wrong:
        raise ModelFormatError(f"{path} is damaged: cannot use {', '.join(wrong)}. Save or download the model again.")


def _is_mapping_to(kind: type, value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())


def _check_file(folder: Path, name: str, digest: str) -> None:
    if Path(name).name != name:  # the manifest may come from anybody: nothing outside the folder is opened
        raise ModelFormatError(f"{folder} names the file {name!r} outside its folder. Do not use this model.")
    path = folder / name
    if not path.is_file():
        raise ModelFormatError(f"{folder} is torn: {name} is missing. Save or download the model again.")
    if file_sha256(path) != digest:
        raise ModelFormatError(f"{folder} is torn: {name} has changed since it was saved. Save or download it again.")
