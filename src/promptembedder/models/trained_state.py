"""The weights that training changes: what is saved, restored and given to the optimiser."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from promptembedder.errors import ModelFormatError
from promptembedder.shapes import Tensor
from promptembedder.storage.tensors import load_tensors

__all__ = ["restore_tensors", "saved_state", "trained_state"]

_FITTED = "readout."  # its buffers come from texts, not from a configuration


def trained_state(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that training changes, by name, in a fixed order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def saved_state(module: nn.Module) -> dict[str, Tensor]:
    """What a whole encoder saves: the trained weights, and what was fitted to texts."""
    fitted = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(_FITTED)}
    return {**trained_state(module), **fitted}


@torch.no_grad()
def restore_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of the file into `state`, in place.

    Raises:
        ModelFormatError: The file holds other tensors than `state`.
    """
    saved = load_tensors(path, {name: tensor.shape for name, tensor in state.items()})
    for name, tensor in state.items():
        if saved[name].is_floating_point() != tensor.is_floating_point():
            raise ModelFormatError(f"{path}: tensor {name!r} is {saved[name].dtype}, expected {tensor.dtype}.")
        tensor.copy_(saved[name])
