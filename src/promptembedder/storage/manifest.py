"""Manifest of a saved model: its configuration, its backbones and the hash of each of its files."""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptembedder.errors import ModelFormatError, first_line, short_repr
from promptembedder.storage.provenance import file_sha256
from promptembedder.storage.settings import migrate_settings

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "hash_files",
    "list_named_files",
    "read_manifest",
    "resolve_file",
    "write_manifest",
]

FORMAT = 4  # 1: one reader; 2: several; 3: the manifest's own hash; 4: settings and tensors renamed
MANIFEST_NAME = "promptembedder.json"
_HASH_KEY, _HASHED_SINCE = "sha256", 3
_RENAMED_SINCE = 4
_MAX_NAME_CHARS = 255
_UNHASHED = frozenset({MANIFEST_NAME, "README.md", ".gitattributes"})  # may be edited by hand


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of a manifest: everything a loader needs before it reads a tensor.

    Attributes:
        config: The model's configuration.
        backbones: Source, revision, dtype, layers and fingerprint by role (`prompter`, `reader`).
        instructions: Instructions with compiled soft tokens, in the order of the tensor's rows.
        files: SHA-256 by file name, relative to the folder.
        kind: Kind of the saved model, `promptembedder` or `baseline`.
        readers: Further readers that the model can be opened on, as mappings. `files` contains their files.
        provenance: Library versions, recipe and data of the training. Informational.
    """

    config: dict[str, Any]
    backbones: dict[str, dict[str, Any]]
    instructions: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    kind: str = "promptembedder"
    readers: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically, after all other files: a folder without a valid manifest is incomplete."""
    files = {name: file_sha256(folder / name) for name in manifest.files}
    content: dict[str, Any] = {
        "format": FORMAT,
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
        json.dump({**content, _HASH_KEY: _hash_of(content)}, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(folder / MANIFEST_NAME)


def hash_files(folder: Path) -> None:
    """Add all other files of the folder, except the model card, to its manifest. Do nothing without a manifest."""
    if not (folder / MANIFEST_NAME).is_file():
        return
    manifest = _parse_manifest(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in _UNHASHED)
    write_manifest(folder, replace(manifest, files=dict.fromkeys([*manifest.files, *names], "")))


def list_named_files(folder: Path) -> list[str]:
    """List the files that the folder's manifest names. Empty if the manifest cannot be read."""
    try:
        return list(_parse_manifest(folder).files)
    except ModelFormatError:
        return []


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a saved model and verify all files against their hashes.

    Raises:
        ModelFormatError: If there is no manifest, its format is newer, or a file is missing or changed. The message
            names the last complete checkpoint in or next to the folder, if there is one.
    """
    try:
        return _read_verified(folder)
    except ModelFormatError as error:
        complete = _find_last_complete(folder)
        if complete is None:
            raise
        raise ModelFormatError(f"{error} The last complete checkpoint is {complete}.") from error


def _read_verified(folder: Path) -> Manifest:
    manifest = _parse_manifest(folder)
    for name, digest in manifest.files.items():
        _check_file(folder, name, digest)
    return manifest


def _find_last_complete(folder: Path) -> Path | None:
    found = [path for root in (folder, folder.parent) for path in root.glob("checkpoint-*") if path != folder]
    numbered = [path for path in found if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(numbered, key=lambda path: -int(path.name.removeprefix("checkpoint-"))):
        try:
            _read_verified(path)
        except (ModelFormatError, OSError):
            continue
        return path
    return None


def _parse_manifest(folder: Path) -> Manifest:
    """Read and check the manifest itself, without the files that it names."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelFormatError(
            f"{folder} is not a saved model: it has no {MANIFEST_NAME}. Give a folder that save wrote."
        )
    content = _parse_json(resolve_file(folder, MANIFEST_NAME))
    version = content.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:  # a bool is an int, too
        newer = type(version) is int and version > FORMAT
        fix = "Upgrade promptembedder." if newer else "The manifest is damaged; save or download the model again."
        raise ModelFormatError(
            f"{folder} has format {short_repr(version)}, this version reads formats up to {FORMAT}. {fix}"
        )
    digest = content.pop(_HASH_KEY, None) if version >= _HASHED_SINCE else None
    try:
        manifest = Manifest(**{key: value for key, value in content.items() if key != "format"})
    except TypeError as error:
        raise ModelFormatError(f"{path} is damaged: {first_line(error)}. Save or download the model again.") from error
    _check_types(path, manifest)
    if version >= _HASHED_SINCE and digest != _hash_of(content):
        raise ModelFormatError(f"{path} is damaged: it has changed since it was saved. Save or download it again.")
    return manifest if version >= _RENAMED_SINCE else _migrate(manifest)


def _migrate(manifest: Manifest) -> Manifest:
    """Rename the settings of a manifest of format 3 or older."""
    readers = [{**reader, "config": migrate_settings(reader.get("config"))} for reader in manifest.readers]
    return replace(manifest, config=migrate_settings(manifest.config), readers=readers)


def _hash_of(content: dict[str, Any]) -> str:
    """Hash the manifest's content, independently of its formatting."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {first_line(error)}. Save or download the model again.") from error
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} is damaged: it is not a JSON object. Save or download the model again.")
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
        raise ModelFormatError(
            f"{path} is damaged: wrong types of {', '.join(wrong)}. Save or download the model again."
        )


def _is_mapping_to(kind: type, value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())


def resolve_file(folder: Path, name: str) -> Path:
    """Return the path of a file of the folder.

    Raises:
        ModelFormatError: If the file is missing, or its name or its link points outside the folder.
    """
    if (
        Path(name).name != name or not name.isprintable() or len(name) > _MAX_NAME_CHARS
    ):  # untrusted: no file outside the folder is opened
        raise ModelFormatError(f"{folder} names the file {short_repr(name)} outside its folder. Do not use this model.")
    path = folder / name
    if os.path.islink(path) and not any(
        path.resolve().is_relative_to(root.resolve()) for root in _allowed_roots(folder)
    ):
        raise ModelFormatError(f"{path} is a link to a file outside its folder. Do not use this model.")
    if not os.path.isfile(path):  # Path.is_file raises over a name that is too long
        raise ModelFormatError(
            f"Incomplete model folder {folder}: {name} is missing. Save or download the model again."
        )
    return path


def _allowed_roots(folder: Path) -> list[Path]:
    """List the folders that may contain the files: the folder itself and, in the hub's cache, `blobs`."""
    cache = folder.absolute().parent
    return [folder, *([cache.parent / "blobs"] if cache.name == "snapshots" else [])]


def _check_file(folder: Path, name: str, digest: str) -> None:
    path = resolve_file(folder, name)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    if found != digest:
        raise ModelFormatError(
            f"Incomplete model folder {folder}: {name} has changed since it was saved. Save or download it again."
        )
