"""The manifest of a saved model: what it is made of, and the hash of each of its files."""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptembedder.errors import ModelFormatError, brief, shown
from promptembedder.storage.provenance import file_sha256

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "checked_file",
    "named_files",
    "read_manifest",
    "seal_folder",
    "write_manifest",
]

FORMAT = 3  # 1: one reader; 2: several; 3: the manifest's own hash
MANIFEST_NAME = "promptembedder.json"
_SEAL, _SEALED_SINCE = "sha256", 3
_MOST_NAME_CHARS = 255
_UNSEALED = frozenset({MANIFEST_NAME, "README.md", ".gitattributes"})  # for people, and free to be edited


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
        json.dump({**content, _SEAL: _hash_of(content)}, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(folder / MANIFEST_NAME)


def seal_folder(folder: Path) -> None:
    """Name all other files of the folder in its manifest too, but for the model card; a folder without one stays so."""
    if not (folder / MANIFEST_NAME).is_file():
        return
    manifest = _manifest_of(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in _UNSEALED)
    write_manifest(folder, replace(manifest, files=dict.fromkeys([*manifest.files, *names], "")))


def named_files(folder: Path) -> list[str]:
    """The files that the folder's manifest names; none if it cannot be read."""
    try:
        return list(_manifest_of(folder).files)
    except ModelFormatError:
        return []


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved model, its files present and hashed.

    Raises:
        ModelFormatError: No manifest, a newer format, or a file that is missing or changed; the message names the last
            whole checkpoint in or beside the folder, if there is one.
    """
    try:
        return _verified(folder)
    except ModelFormatError as error:
        whole = _last_whole_beside(folder)
        if whole is None:
            raise
        raise ModelFormatError(f"{error} The last whole checkpoint is {whole}.") from error


def _verified(folder: Path) -> Manifest:
    manifest = _manifest_of(folder)
    for name, digest in manifest.files.items():
        _check_file(folder, name, digest)
    return manifest


def _last_whole_beside(folder: Path) -> Path | None:
    found = [path for place in (folder, folder.parent) for path in place.glob("checkpoint-*") if path != folder]
    numbered = [path for path in found if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(numbered, key=lambda path: -int(path.name.removeprefix("checkpoint-"))):
        try:
            _verified(path)
        except (ModelFormatError, OSError):
            continue
        return path
    return None


def _manifest_of(folder: Path) -> Manifest:
    """What the manifest says, its own form checked; the files are not looked at."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelFormatError(f"{folder} is no saved model: it has no {MANIFEST_NAME}. Give a folder that save wrote.")
    content = _parsed(checked_file(folder, MANIFEST_NAME))
    version = content.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:  # a bool is an int, too
        newer = type(version) is int and version > FORMAT
        mend = "Upgrade promptembedder." if newer else "The manifest is damaged; save or download the model again."
        raise ModelFormatError(
            f"{folder} has format {shown(version)}, this version reads formats up to {FORMAT}. {mend}"
        )
    seal = content.pop(_SEAL, None) if version >= _SEALED_SINCE else None
    try:
        manifest = Manifest(**{key: value for key, value in content.items() if key != "format"})
    except TypeError as error:
        raise ModelFormatError(f"{path} is damaged: {brief(error)}. Save or download the model again.") from error
    _check_types(path, manifest)
    if version >= _SEALED_SINCE and seal != _hash_of(content):
        raise ModelFormatError(f"{path} is damaged: it has changed since it was saved. Save or download it again.")
    return manifest


def _hash_of(content: dict[str, Any]) -> str:
    """Of what the manifest says, however it is laid out."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {brief(error)}. Save or download the model again.") from error
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


def checked_file(folder: Path, name: str) -> Path:
    """The file of this name in the folder.

    Raises:
        ModelFormatError: It is missing, or outside the folder: by its name, or by where a link leads.
    """
    if (
        Path(name).name != name or not name.isprintable() or len(name) > _MOST_NAME_CHARS
    ):  # it may come from anybody: nothing outside the folder is opened
        raise ModelFormatError(f"{folder} names the file {shown(name)} outside its folder. Do not use this model.")
    path = folder / name
    if os.path.islink(path) and not any(path.resolve().is_relative_to(place.resolve()) for place in _homes(folder)):
        raise ModelFormatError(f"{path} is a link to a file outside its folder. Do not use this model.")
    if not os.path.isfile(path):  # Path.is_file raises over a name that is too long
        raise ModelFormatError(f"{folder} is torn: {name} is missing. Save or download the model again.")
    return path


def _homes(folder: Path) -> list[Path]:
    """Where files of the folder may lie: in it; in the hub's cache, in `blobs` beside `snapshots`, too."""
    cache = folder.absolute().parent
    return [folder, *([cache.parent / "blobs"] if cache.name == "snapshots" else [])]


def _check_file(folder: Path, name: str, digest: str) -> None:
    path = checked_file(folder, name)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    if found != digest:
        raise ModelFormatError(f"{folder} is torn: {name} has changed since it was saved. Save or download it again.")
