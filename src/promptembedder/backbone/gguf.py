"""Read GGUF headers and convert GGUF weights to a transformers checkpoint."""

import io
import json
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptembedder.backbone.sources import BackboneSource, quiet_transformers, sha256_of
from promptembedder.errors import BackboneError
from promptembedder.storage import check_writable

__all__ = ["GgufHeader", "check_gguf", "convert_gguf"]

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES, _MOST_ITEMS, _MOST_CHARS, _MOST_DIMS = 100_000, 4_000_000, 1 << 22, 4
# sizes of a model: none can exceed the largest tensor dimension, or the number of tensors
_WIDTHS = (
    *("embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "vocab_size"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
)
_COUNTS = ("block_count", "expert_count")


@dataclass(frozen=True)
class GgufHeader:
    """Integer metadata and tensor shapes of a GGUF file.

    Attributes:
        numbers: Integers of the metadata by key.
        shapes: Tensor shapes by name.
    """

    numbers: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


def check_gguf(path: Path, *, name: str) -> GgufHeader:
    """Read and validate the header of a GGUF file.

    Args:
        name: Name of the model in error messages.

    Raises:
        BackboneError: If the file is damaged, or if its size differs from its header.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header, offsets = _HeaderReader(file, size).header()
            _check_tensors(header, offsets, size - file.tell())
    except (OSError, ValueError, struct.error) as error:
        raise BackboneError(f"cannot read {name!r} as a GGUF model: {error}. Download it again.") from error
    return header


class _HeaderReader:
    """Bounds-checked reader of a GGUF header. Invalid content raises ValueError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._items = file, size, 0

    def header(self) -> tuple[GgufHeader, dict[str, tuple[int, int]]]:
        """Read the header, and the offset and size in bytes of each tensor."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, tensors, entries = self._number("I"), self._number("Q"), self._number("Q")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, known are {_VERSIONS}")
        if max(tensors, entries) > _MOST_ENTRIES:
            raise ValueError(f"it names {tensors} tensors and {entries} entries")
        numbers: dict[str, int] = {}
        for _ in range(entries):
            key = self._text()
            value = self._value(self._number("I"))
            if isinstance(value, int):
                numbers[key] = value
        shapes: dict[str, tuple[int, ...]] = {}
        offsets: dict[str, tuple[int, int]] = {}
        for _ in range(tensors):
            name, dims = self._text(), self._number("I")
            if name in shapes or not 1 <= dims <= _MOST_DIMS:
                raise ValueError(f"the tensor {name[:60]!r} has {dims} dimensions, or comes twice")
            shapes[name] = tuple(self._number("Q") for _ in range(dims))
            kind, offset = self._number("I"), self._number("Q")
            offsets[name] = (offset, _bytes_of(shapes[name], kind))
        return GgufHeader(numbers, shapes), offsets

    def _take(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise ValueError(f"it ends where {count} bytes more should be")
        return self._file.read(count)

    def _number(self, kind: str) -> int:
        found: int = struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]
        return found

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MOST_CHARS:
            raise ValueError(f"a string of it has {length} bytes")
        return self._take(length).decode("utf-8")

    def _value(self, kind: int) -> object:
        if kind in _SCALARS:
            packed = f"<{_SCALARS[kind]}"
            return struct.unpack(packed, self._take(struct.calcsize(packed)))[0]
        if kind == _STRING:
            length = self._number("Q")
            self._take(length)  # a token of the vocabulary may be an incomplete character
            return None
        if kind != _ARRAY:
            raise ValueError(f"an entry is of the unknown kind {kind}")
        inner, length = self._number("I"), self._number("Q")
        self._items += length
        if self._items > _MOST_ITEMS or (inner not in _SCALARS and inner != _STRING):
            raise ValueError(f"an array of kind {inner} has {length} items")
        if inner in _SCALARS:
            self._take(length * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(length):
                self._value(_STRING)
        return None


def _bytes_of(shape: tuple[int, ...], kind: int) -> int:
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"a tensor is of the unknown kind {kind}") from None
    if not all(shape) or shape[0] % block:
        raise ValueError(f"a tensor has the shape {list(shape)}, which its kind cannot have")
    return prod(shape) // block * block_bytes


def _check_tensors(header: GgufHeader, offsets: Mapping[str, tuple[int, int]], rest: int) -> None:
    if not offsets:
        raise ValueError("it holds no tensor")
    alignment = header.numbers.get("general.alignment", 32)
    if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment}")
    for name, (offset, size) in offsets.items():
        if offset + size > rest:
            raise ValueError(f"the tensor {name[:60]!r} ends after the file")
    widest = max(max(shape) for shape in header.shapes.values())
    for key, number in header.numbers.items():
        most = next((widest for end in _WIDTHS if key.endswith(f".{end}")), None)
        most = next((len(offsets) for end in _COUNTS if key.endswith(f".{end}")), most)
        if most is not None and not 0 <= number <= most:
            raise ValueError(f"{key[:60]!r} is {number}, more than its {len(offsets)} tensors can hold")


logger = logging.getLogger(__name__)

_LAYOUT = 1  # increment when the format of the converted files changes, so that old caches are not used


def convert_gguf(source: BackboneSource, cache_folder: Path) -> tuple[Path, str]:
    """Return the folder with the float32 model and tokenizer of a GGUF, and the sha256 of the GGUF.

    The first call converts the file. The folder is renamed to its final name in one step, so an interrupted or
    concurrent call leaves no incomplete folder.

    Raises:
        BackboneError: If the file is damaged, has a different sha256 than expected, or has an unknown architecture, or
            if the cache folder cannot be written.
    """
    # The hash of an installed model is known, so its cache is found without reading the file.
    digest = source.sha256 or sha256_of(source.parts)
    folder = cache_folder / f"gguf-v{_LAYOUT}" / digest[:24]
    if _is_complete(folder):
        return folder, digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise BackboneError(
            f"cannot store the converted weights of {source.name!r} in {cache_folder} ({error.strerror or error}). Set "
            "HOME to a folder that can be written."
        ) from error
    with FileLock(f"{folder}.lock"):  # a second process waits instead of converting again
        if not _is_complete(folder):
            found = sha256_of(source.parts)
            if found != digest:
                raise BackboneError(
                    f"the weights of {source.name!r} have sha256 {found[:12]}…, expected {digest[:12]}…. "
                    "The file is damaged: install or download it again."
                )
            _convert(source, folder)
    return folder, digest


def _is_complete(folder: Path) -> bool:
    """Return True if every file has its full size: a disk may lose data after the rename."""
    try:
        sizes: dict[str, int] = json.loads((folder / "sizes.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # also JSON of another shape
        return False


def _convert(source: BackboneSource, folder: Path) -> None:
    logger.info("de-quantising %s into %s (once)", source.name, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
        gguf = _single_file(source, Path(scratch))
        check_gguf(gguf, name=source.name)
        target = Path(scratch) / "model"
        try:
            # the progress bar of gguf's reader cannot be disabled
            with quiet_transformers(), redirect_stderr(io.StringIO()):
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                model, report = AutoModelForCausalLM.from_pretrained(
                    gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
                )
                if report["missing_keys"]:  # transformers initializes missing weights at random
                    raise ValueError(f"it lacks {min(report['missing_keys'])}")
                # The weights are dense now, but transformers still marks them as quantized and cannot save them.
                model.hf_quantizer, model.is_quantized = None, False
                if hasattr(model.config, "quantization_config"):
                    del model.config.quantization_config
                model.save_pretrained(target)
                tokenizer.save_pretrained(target)
        except Exception as error:  # the GGUF parser raises arbitrary exceptions for a damaged file
            raise BackboneError(f"cannot read {source.name!r} as a GGUF model: {_first_line(error)}") from error
        _publish(target, folder)


def _single_file(source: BackboneSource, scratch: Path) -> Path:
    """Return the GGUF as one file. Several parts are concatenated in `scratch`."""
    if len(source.parts) == 1:
        return source.parts[0].resolve()
    joined = scratch / "joined.gguf"
    with joined.open("wb") as out:
        for part in source.parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 22)
    return joined


def _publish(made: Path, folder: Path) -> None:
    """Sync the files to disk, then rename the folder to its final name."""
    sizes = {path.name: path.stat().st_size for path in made.iterdir()}
    (made / "sizes.json").write_text(json.dumps(sizes))
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():  # an incomplete folder
        shutil.rmtree(folder)
    made.rename(folder)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
