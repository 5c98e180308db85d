"""Tensors and plain training state in safetensors files."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from promptembedder.errors import ModelFormatError, first_line, short_repr
from promptembedder.storage.provenance import write_text
from promptembedder.storage.settings import migrate_tensor_name
from promptembedder.types import Tensor

__all__ = ["load_state", "load_tensors", "save_state", "save_tensors"]

# dtypes of weights, ids and random generator states
_DTYPES = frozenset({"F32", "BF16", "F16", "I64", "U8"})
_MAX_BYTES = 1 << 36  # 64 GiB; a fully trained prompter of 7 billion weights has 28 GiB


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors to `path` and sync them to disk.

    Raises:
        OSError: If the disk is full, or the file cannot be written.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    path.chmod(0o644)  # safetensors makes the file readable by its owner only
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path, expected: Mapping[str, torch.Size] | None = None) -> dict[str, Tensor]:
    """Load the tensors of `path` to the CPU.

    Args:
        expected: Exact names and shapes that the file must contain. If None, any are accepted.

    Raises:
        ModelFormatError: If the file is missing, damaged or too large, or contains unexpected tensors or dtypes, or a
            value that is not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = {migrate_tensor_name(name): name for name in file.keys()}
            shapes = {new: _check_shape(path, new, file.get_slice(name)) for new, name in names.items()}
            if expected is not None:
                _check_names(path, shapes, expected)  # before any tensor is loaded
            tensors: dict[str, Tensor] = {new: file.get_tensor(name) for new, name in names.items()}
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise ModelFormatError(f"cannot read {path}: {first_line(error)}. Save or download the model again.") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelFormatError(
                f"{path} contains values that are not finite in {short_repr(name)}. Use an earlier checkpoint."
            )
    return tensors


def _check_shape(path: Path, name: str, entry: Any) -> tuple[int, ...]:
    """Return the shape of a tensor from the file's header, after checking dtype and size."""
    dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
    if dtype not in _DTYPES:
        raise ModelFormatError(
            f"{path}: tensor {short_repr(name)} is {dtype}, expected one of {', '.join(sorted(_DTYPES))}. Save again."
        )
    if 8 * prod(shape) > _MAX_BYTES or any(size > _MAX_BYTES for size in shape):
        raise ModelFormatError(
            f"{path}: tensor {short_repr(name)} has shape {short_repr(list(shape))}, more than {_MAX_BYTES} bytes."
        )
    return shape


def _check_names(path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, torch.Size]) -> None:
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or extra:
        raise ModelFormatError(
            f"{path} does not fit its configuration: {len(missing)} tensors missing {short_repr(missing[:2])}, "
            f"{len(extra)} not known {short_repr(extra[:2])}."
        )
    for name, shape in expected.items():
        if shapes[name] != tuple(shape):
            raise ModelFormatError(
                f"{path}: tensor {short_repr(name)} has shape {short_repr(list(shapes[name]))}, expected {list(shape)}."
            )


# encoding of values that JSON cannot represent: a mapping with one of these keys
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"
_MAX_DEPTH = 64


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write a state to `NAME.json` and `NAME.safetensors`, from which `load_state` restores it bit for bit.

    Args:
        state: Mappings, lists and tuples of tensors, None, booleans, numbers and strings.

    Raises:
        TypeError: If the state contains a value of another type.
        ValueError: If the state contains a number that is not finite outside a tensor.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, tensors), ensure_ascii=False, allow_nan=False)
    save_tensors(folder / f"{name}.safetensors", tensors)
    write_text(folder / f"{name}.json", text)


def load_state(folder: Path, name: str) -> Any:
    """Load a state that `save_state` wrote, with its tensors on the CPU.

    Raises:
        ModelFormatError: If a file is missing or damaged.
    """
    path = folder / f"{name}.json"
    tensors = load_tensors(folder / f"{name}.safetensors")
    try:
        return _decode(json.loads(path.read_text(encoding="utf-8")), tensors, depth=0)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {first_line(error)}. Use an earlier checkpoint.") from error


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_ITEMS: [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state must not contain a {type(value).__name__}: {value!r}")


def _decode(value: Any, tensors: dict[str, Tensor], *, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_decode(item, tensors, depth=depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    items = [_decode(item, tensors, depth=depth + 1) for item in content]
    if kind == _TUPLE:
        return tuple(items)
    if kind == _ITEMS:
        return dict(items)
    raise ValueError(f"unknown kind {short_repr(kind)}")
