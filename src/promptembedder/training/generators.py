"""States of the random generators in a checkpoint: one for all processes, since all draw the same numbers."""

import random
from pathlib import Path

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

__all__ = ["restore_generators", "save_generators"]

_NAME = "rng_state.pth"  # what transformers' trainer reads and writes where there is one process


def save_generators(folder: Path) -> None:
    """Write the states of this process's generators."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    torch.save(states, folder / _NAME)


def restore_generators(folder: Path) -> None:
    """Go on from the states of a checkpoint, whichever number of processes wrote it."""
    with safe_globals():
        states = torch.load(folder / _NAME, weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
