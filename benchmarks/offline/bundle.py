"""Files cut into parts of limited size, with a checksum for each part, and the manifest that describes the parts.

Imports only the standard library, because `install` runs on a Python that has no other packages yet.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from promptembedder.errors import DataError

__all__ = ["MANIFEST_NAME", "PART_BYTES", "Part", "extract_bundle", "join_parts", "read_manifest", "write_bundle"]

MANIFEST_NAME = "manifest.json"
PART_BYTES = 56 << 20

_FORMAT = 1
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of an archive: file name, size in bytes and sha256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def write_bundle(
    entries: Mapping[str, Path], folder: Path, *, part_bytes: int = PART_BYTES, facts: Mapping[str, Any] | None = None
) -> list[Part]:
    """Archive files and folders, cut the archive into parts, and write the manifest last.

    Args:
        entries: Files and folders to archive, by their path in the archive.
        folder: Receives the parts and the manifest. Parts of an earlier bundle are deleted.
        part_bytes: Maximum size of a part.
        facts: Additional fields of the manifest.

    Raises:
        DataError: If an entry does not exist.
    """
    for path in entries.values():
        if not path.exists():
            raise DataError(f"cannot archive {path}: it does not exist. Check the path.")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / MANIFEST_NAME, *folder.glob("bundle.tar.*")):
        old.unlink(missing_ok=True)
    archive = folder / "bundle.tar.partial"
    try:
        with tarfile.open(archive, "w") as tar:
            for name, path in sorted(entries.items()):
                tar.add(path, arcname=name, filter=_without_bytecode)
        archive_sha256 = _sha256(archive)
        parts = _split(archive, folder, part_bytes)
    finally:
        archive.unlink(missing_ok=True)
    manifest = {"format": _FORMAT, "sha256": archive_sha256, **dict(facts or {}), "parts": [asdict(p) for p in parts]}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return parts


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a bundle.

    Raises:
        DataError: If the manifest is missing, damaged or of another format.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == _FORMAT and bool(manifest["sha256"]) and bool(_parts(manifest))
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}). Copy the manifest into the folder.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged. Copy the manifest again.") from error
    if not known:
        raise DataError(f"{path} has format {manifest['format']}, expected {_FORMAT}. Prepare the bundle again.")
    return manifest


def join_parts(folder: Path, archive: Path) -> dict[str, Any]:
    """Verify every part of the bundle in `folder`, join the parts into the file `archive`, and return the manifest.

    Raises:
        DataError: If parts are missing or damaged. The message names all of them, so that one copy fixes them.
    """
    manifest = read_manifest(folder)
    parts = _parts(manifest)
    missing = [part.name for part in parts if not (folder / part.name).is_file()]
    if missing:
        raise DataError(f"missing parts in {folder}: {', '.join(missing)}. Copy them into the folder.")
    damaged = [part.name for part in parts if not _is_intact(folder / part.name, part)]
    if damaged:
        raise DataError(f"damaged parts in {folder}: {', '.join(damaged)}. Copy them again.")
    with archive.open("wb") as target:
        for part in parts:
            with (folder / part.name).open("rb") as source:
                shutil.copyfileobj(source, target, _BLOCK_BYTES)
    if _sha256(archive) != manifest["sha256"]:
        raise DataError(f"the joined parts of {folder} have another checksum than the manifest. Prepare it again.")
    return manifest


def extract_bundle(folder: Path, target: Path) -> dict[str, Any]:
    """Verify the bundle in `folder`, extract its files into `target`, and return the manifest.

    Raises:
        DataError: If parts are missing or damaged, or the archive contains unsafe paths.
    """
    target.mkdir(parents=True, exist_ok=True)
    archive = target / ".bundle.tar"
    try:
        manifest = join_parts(folder, archive)
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise DataError(f"cannot extract the bundle in {folder} ({error}). Prepare the bundle again.") from error
    finally:
        archive.unlink(missing_ok=True)
    return manifest


def _split(archive: Path, folder: Path, part_bytes: int) -> list[Part]:
    parts = []
    with archive.open("rb") as source:
        while source.tell() < archive.stat().st_size:
            name, digest, size = f"bundle.tar.{len(parts):03d}", hashlib.sha256(), 0
            with (folder / name).open("wb") as target:
                for block in _blocks(source, part_bytes):
                    target.write(block)
                    digest.update(block)
                    size += len(block)
            parts.append(Part(name=name, bytes=size, sha256=digest.hexdigest()))
    return parts


def _blocks(source: BinaryIO, limit: int) -> Iterator[bytes]:
    while limit > 0 and (block := source.read(min(_BLOCK_BYTES, limit))):
        limit -= len(block)
        yield block


def _parts(manifest: Mapping[str, Any]) -> Sequence[Part]:
    parts = [Part(**part) for part in manifest["parts"]]
    if any(Path(part.name).name != part.name for part in parts):
        raise ValueError("a part's name contains a folder")
    return parts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(path: Path, part: Part) -> bool:
    return path.stat().st_size == part.bytes and _sha256(path) == part.sha256


def _without_bytecode(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in Path(entry.name).parts else entry
