"""The weights that training changes: what is saved, restored and given to the optimiser."""

from pathlib import Path

import torch
from torch import nn

from promptembedder.storage import load_tensors

__all__ = ["restore_trained", "trained_state"]


def trained_state(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that training changes, by name, in a fixed order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


@torch.no_grad()
def restore_trained(module: nn.Module, path: Path) -> None:
    """Copy the trained weights of the file into `module`, in place.

    Raises:
        ModelFormatError: The file holds other weights than `module` has.
    """
    state = trained_state(module)
    saved = load_tensors(path, {name: weight.shape for name, weight in state.items()})
    for name, weight in state.items():
        weight.copy_(saved[name])
