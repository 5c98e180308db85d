"""Tensors and plain training state in safetensors files."""

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from promptembedder.errors import ModelFormatError, brief, shown
from promptembedder.types import Tensor
import json
from promptembedder.storage.provenance import write_text

__all__ = ['load_state', 'load_tensors', 'save_state', 'save_tensors']

# what we write: weights, ids, states of random generators
_DTYPES = frozenset({"F32", "BF16", "F16", "I64", "U8"})
_MAX_BYTES = 1 << 36  # 64 GiB; a fully trained prompter of 7 billion weights has 28


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors to `path` and sync them to disk.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    path.chmod(0o644)  # safetensors writes for the owner alone; a shared model is for reading
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path, expected: Mapping[str, torch.Size] | None = None) -> dict[str, Tensor]:
    """The tensors of `path`, on the CPU.

    Args:
        expected: Names and shapes that the file must hold, no more and no less; None accepts any.

    Raises:
        ModelFormatError: The file is missing or damaged, too large, holds other tensors or dtypes than we write, or a
            value that is not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: _checked_shape(path, name, file.get_slice(name)) for name in file.keys()}
            if expected is not None:
                _check_names(path, shapes, expected)  # before anything is in memory
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise ModelFormatError(f"cannot read {path}: {brief(error)}. Save or download the model again.") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelFormatError(
                f"{path} holds values that are not finite in {shown(name)}. Use an earlier checkpoint."
            )
    return tensors


def _checked_shape(path: Path, name: str, entry: Any) -> tuple[int, ...]:
    """What the header says of a tensor; its numbers are not read."""
    dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
    if dtype not in _DTYPES:
        raise ModelFormatError(
            f"{path}: tensor {shown(name)} is {dtype}, we write {', '.join(sorted(_DTYPES))}. Save again."
        )
    if 8 * prod(shape) > _MAX_BYTES or any(size > _MAX_BYTES for size in shape):
        raise ModelFormatError(
            f"{path}: tensor {shown(name)} has shape {shown(list(shape))}, more than {_MAX_BYTES} bytes."
        )
    return shape


def _check_names(path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, torch.Size]) -> None:
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or extra:
        raise ModelFormatError(
            f"{path} does not fit its configuration: {len(missing)} tensors missing {shown(missing[:2])}, "
            f"{len(extra)} not known {shown(extra[:2])}."
        )
    for name, shape in expected.items():
        if shapes[name] != tuple(shape):
            raise ModelFormatError(
                f"{path}: tensor {shown(name)} has shape {shown(list(shapes[name]))}, expected {list(shape)}."
            )


# what JSON has no word for, as a mapping of one such key
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"
_MAX_DEPTH = 64


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write `NAME.json` and `NAME.safetensors`; `load_state` gives the same state again, bit for bit.

    Args:
        state: Mappings, lists and tuples of tensors, None, booleans, numbers and strings.

    Raises:
        TypeError: It holds something else.
        ValueError: It holds a number that is not finite outside a tensor.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(state, tensors), ensure_ascii=False, allow_nan=False)
    save_tensors(folder / f"{name}.safetensors", tensors)
    write_text(folder / f"{name}.json", text)


def load_state(folder: Path, name: str) -> Any:
    """What `save_state` wrote; the tensors on the CPU.

    Raises:
        ModelFormatError: A file is missing or damaged.
    """
    path = folder / f"{name}.json"
    tensors = load_tensors(folder / f"{name}.safetensors")
    try:
        return _unpacked(json.loads(path.read_text(encoding="utf-8")), tensors, depth=0)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {brief(error)}. Use an earlier checkpoint.") from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_ITEMS: [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state may not hold a {type(value).__name__}: {value!r}")


def _unpacked(value: Any, tensors: dict[str, Tensor], *, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_unpacked(item, tensors, depth=depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    items = [_unpacked(item, tensors, depth=depth + 1) for item in content]
    if kind == _TUPLE:
        return tuple(items)
    if kind == _ITEMS:
        return dict(items)
    raise ValueError(f"unknown kind {shown(kind)}")
