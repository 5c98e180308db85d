"""Training checkpoints and the random number generator state they contain."""

import random
from typing import Any
import numpy as np
import torch
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from promptembedder.errors import ModelFormatError
from promptembedder.storage import checked_file, file_sha256, whole_folder, write_json
from promptembedder.storage.tensors import load_state, save_state

__all__ = ['checkpoint_step', 'checkpoints_in', 'clear_after', 'generator_states', 'keep_newest', 'last_whole_checkpoint', 'new_checkpoint', 'read_training_state', 'restore_generators', 'write_training_state']

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


logger = logging.getLogger(__name__)

_FORMAT = 1
_SEAL = "checkpoint.json"
_STATE = "training_state"
_NAME = re.compile(r"checkpoint-(\d{1,15})")


@contextmanager
def new_checkpoint(output: Path, step: int) -> Iterator[Path]:
    """A scratch folder that becomes the checkpoint of `step`, with the hash of each of its files.

    Raises:
        SaveError: It cannot be written; the earlier checkpoints are as they were.
    """
    target = output / f"checkpoint-{step}"
    if target.exists():
        _removed(target)  # torn, or the run would have gone on from it
    with whole_folder(target) as scratch:
        yield scratch
        files = sorted(path.name for path in scratch.iterdir() if path.is_file())
        seal = {"format": _FORMAT, "step": step, "files": {name: file_sha256(scratch / name) for name in files}}
        write_json(scratch / _SEAL, seal)


def write_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Write optimiser, schedule, generators and the like beside a checkpoint's model."""
    save_state(folder, _STATE, state)


def read_training_state(folder: Path) -> dict[str, Any]:
    """What `write_training_state` wrote.

    Raises:
        ModelFormatError: It is missing or damaged.
    """
    state = load_state(folder, _STATE)
    if not isinstance(state, dict):
        raise ModelFormatError(f"{folder / _STATE}.json is damaged: it holds no state. Use an earlier checkpoint.")
    return state


def checkpoint_step(folder: Path) -> int:
    """After how many steps a checkpoint was written, as its name says."""
    return int(folder.name.rpartition("-")[2])


def checkpoints_in(output: Path) -> list[Path]:
    """All checkpoints of a run, whole or not, the oldest first."""
    found = [path for path in output.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def last_whole_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint all of whose files are as they were written; a warning tells of newer ones."""
    for path in reversed(checkpoints_in(output)):
        wrong = _wrong_with(path)
        if wrong is None:
            return path
        logger.warning("%s is not whole (%s) and is left out", path, wrong)
    return None


def keep_newest(output: Path, count: int) -> None:
    """Delete all checkpoints but the newest."""
    for path in checkpoints_in(output)[:-count]:
        _removed(path)


def clear_after(output: Path, checkpoint: Path | None) -> None:
    """Delete what must not be mistaken for the run's own: newer checkpoints, all of them for None, and half ones."""
    last = -1 if checkpoint is None else checkpoint_step(checkpoint)
    for path in checkpoints_in(output):
        if checkpoint_step(path) > last:
            _removed(path)
    for stray in output.glob(".checkpoint-*"):  # the run owns its folder: nobody else is writing them
        shutil.rmtree(stray, ignore_errors=True)


def _removed(path: Path) -> None:
    """Delete in one step what a kill would otherwise leave half there."""
    aside = path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def _wrong_with(folder: Path) -> str | None:
    try:
        seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        if seal["format"] != _FORMAT:
            return f"format {seal['format']!r}, this version reads {_FORMAT}"
        if seal["step"] != checkpoint_step(folder):
            return f"it is of step {seal['step']!r}"
        changed = [name for name, digest in seal["files"].items() if file_sha256(checked_file(folder, name)) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelFormatError) as error:
        return str(error) or type(error).__name__
    return f"{changed[0]} has changed" if changed else None
