"""States of the random generators in a checkpoint: one for all processes, since all draw the same numbers."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["generator_states", "restore_generators"]


def generator_states() -> dict[str, Any]:
    """The states of this process's generators, as plain values and tensors."""
    kind, keys, position, has_normal, normal = np.random.get_state()
    numpy_state = (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_normal, normal)
    states = {"python": random.getstate(), "numpy": numpy_state, "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Go on from the states of a checkpoint, whichever number of processes wrote it."""
    random.setstate(states["python"])
    kind, keys, position, has_normal, normal = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_normal, normal))
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
