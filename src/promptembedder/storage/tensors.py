"""Tensors in safetensors files: dense, finite, with the names, shapes and dtypes that were expected."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from promptembedder.errors import ModelFormatError
from promptembedder.shapes import Tensor

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors to `path` and sync them to disk."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone; a shared model is for reading
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path, expected: Mapping[str, torch.Size] | None = None) -> dict[str, Tensor]:
    """The tensors of `path`, on the CPU.

    Args:
        expected: Names and shapes that the file must hold, no more and no less; None accepts any.

    Raises:
        ModelFormatError: The file is missing or damaged, holds other tensors, or a value that is not finite.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelFormatError(f"cannot read {path}: {error}. Save or download the model again.") from error
    if expected is not None:
        _check_names(path, tensors, expected)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelFormatError(f"{path} holds values that are not finite in {name!r}. Use an earlier checkpoint.")
    return tensors


def _check_names(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ModelFormatError(
            f"{path} does not fit its configuration: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} not known {extra[:2]}."
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ModelFormatError(
                f"{path}: tensor {name!r} has shape {list(tensors[name].shape)}, expected {list(shape)}."
            )
