"""Tensors in safetensors files: dense, finite, with the names, shapes and dtypes that were expected."""

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from promptembedder.errors import ModelFormatError, brief, shown
from promptembedder.shapes import Tensor

__all__ = ["load_tensors", "save_tensors"]

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
