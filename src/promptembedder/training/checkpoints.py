"""Output folder of a run: its recipe, its checkpoints, and the random number generator state they contain."""

import importlib.util
import json
import logging
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from promptembedder.errors import ConfigError, ModelFormatError
from promptembedder.extras import require
from promptembedder.storage import (
    MANIFEST_NAME,
    atomic_directory,
    check_writable,
    file_sha256,
    from_mapping,
    read_yaml,
    resolve_file,
    to_mapping,
    write_json,
    write_text,
)
from promptembedder.storage.tensors import load_state, save_state
from promptembedder.training.recipe import Recipe

__all__ = [
    "begin_output",
    "checkpoint_step",
    "delete_checkpoints_after",
    "find_last_checkpoint",
    "get_rng_states",
    "keep_newest",
    "list_checkpoints",
    "prepare_output",
    "read_training_state",
    "set_rng_states",
    "write_checkpoint",
    "write_training_state",
]


logger = logging.getLogger(__name__)

RECIPE_NAME = "recipe.yaml"
_FORMAT = 1
_CHECKPOINT_MANIFEST = "checkpoint.json"
_STATE = "training_state"
_NAME = re.compile(r"checkpoint-(\d{1,15})")


def prepare_output(recipe: Recipe, *, overwrite: bool = False) -> Path | None:
    """Check the output folder before the expensive work, and return the checkpoint to resume from, if there is one.

    Nothing is written, so that a run that fails on its data or backbone leaves no files.

    Raises:
        ConfigError: If the folder contains a finished model, a run of another recipe, or only incomplete checkpoints,
            and `overwrite` is not set.
        SaveError: If the output folder cannot be written.
        ImportError: If a tracker of `run.report_to` is not installed.
    """
    _check_trackers(recipe.run.report_to)
    output = Path(recipe.run.output)
    check_writable(output)
    path = output / RECIPE_NAME
    checkpoint = None if overwrite else find_last_checkpoint(output)
    if overwrite:
        return None
    if (output / MANIFEST_NAME).is_file():
        raise ConfigError(f"{output} already contains a trained model. Choose another output, or pass --overwrite.")
    if checkpoint is not None and _read_recipe(path) != recipe:
        raise ConfigError(
            f"{output} contains checkpoints of another recipe. Choose another output, or pass --overwrite."
        )
    if checkpoint is None and list_checkpoints(output):
        raise ConfigError(f"{output} contains only incomplete checkpoints. Choose another output, or pass --overwrite.")
    return checkpoint


def begin_output(recipe: Recipe, checkpoint: Path | None) -> None:
    """Write the recipe, and delete checkpoints of older runs that this run must not resume from."""
    output = Path(recipe.run.output)
    output.mkdir(parents=True, exist_ok=True)
    delete_checkpoints_after(output, checkpoint)
    text = yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)
    write_text(output / RECIPE_NAME, text)


def _read_recipe(path: Path) -> Recipe | None:
    """Read a saved recipe. Settings that it lacks get their defaults. If it is invalid, return None."""
    try:
        return from_mapping(Recipe, read_yaml(path))
    except ConfigError:
        return None


def _check_trackers(names: tuple[str, ...]) -> None:
    """Check that trackers are installed.

    Raises:
        ImportError: If a tracker is not installed. The message contains the install command.
    """
    for name in names:
        if name == "tensorboard":
            require("tensorboard", extra="track")
        elif importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed. Run: pip install {name}")


def get_rng_states() -> dict[str, Any]:
    """Return the states of this process's random number generators, as plain values and tensors."""
    kind, keys, position, has_normal, normal = np.random.get_state()
    numpy_state = (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_normal, normal)
    states = {"python": random.getstate(), "numpy": numpy_state, "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Restore the random number generators from a checkpoint, whichever number of processes wrote it."""
    random.setstate(states["python"])
    kind, keys, position, has_normal, normal = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_normal, normal))
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def write_checkpoint(output: Path, step: int) -> Iterator[Path]:
    """Yield a scratch folder that becomes the checkpoint of `step`, with the hash of each file.

    Raises:
        SaveError: If the checkpoint cannot be written. Earlier checkpoints are unchanged.
    """
    target = output / f"checkpoint-{step}"
    if target.exists():
        _delete(target)  # incomplete, or the run would have resumed from it
    with atomic_directory(target) as scratch:
        yield scratch
        files = sorted(path.name for path in scratch.iterdir() if path.is_file())
        content = {"format": _FORMAT, "step": step, "files": {name: file_sha256(scratch / name) for name in files}}
        write_json(scratch / _CHECKPOINT_MANIFEST, content)


def write_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Write optimizer, schedule, random number generators and running losses into a checkpoint folder."""
    save_state(folder, _STATE, state)


def read_training_state(folder: Path) -> dict[str, Any]:
    """Read the state that `write_training_state` wrote.

    Raises:
        ModelFormatError: If the state is missing or damaged.
    """
    state = load_state(folder, _STATE)
    if not isinstance(state, dict):
        raise ModelFormatError(
            f"{folder / _STATE}.json is damaged: it contains no training state. Use an earlier checkpoint."
        )
    return state


def checkpoint_step(folder: Path) -> int:
    """Return the step of a checkpoint, from its folder name."""
    return int(folder.name.rpartition("-")[2])


def list_checkpoints(output: Path) -> list[Path]:
    """List all checkpoints of a run, complete or not, oldest first."""
    folders = [path for path in output.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(folders, key=checkpoint_step)


def find_last_checkpoint(output: Path) -> Path | None:
    """Return the newest complete checkpoint, and log a warning for each newer one that is incomplete."""
    for path in reversed(list_checkpoints(output)):
        defect = _find_defect(path)
        if defect is None:
            return path
        logger.warning("skipping the incomplete checkpoint %s: %s", path, defect)
    return None


def keep_newest(output: Path, count: int, *, best: Path | None = None) -> None:
    """Delete all but the `count` newest checkpoints and the best one."""
    for path in list_checkpoints(output)[:-count]:
        if path != best:
            _delete(path)


def delete_checkpoints_after(output: Path, checkpoint: Path | None) -> None:
    """Delete checkpoints newer than `checkpoint` (all if None) and scratch folders, before a run writes its own."""
    last = -1 if checkpoint is None else checkpoint_step(checkpoint)
    for path in list_checkpoints(output):
        if checkpoint_step(path) > last:
            _delete(path)
    for stray in output.glob(".checkpoint-*"):  # the run has locked its folder: no other process writes them
        shutil.rmtree(stray, ignore_errors=True)


def _delete(path: Path) -> None:
    """Delete a folder by renaming it first, so that a kill does not leave it half deleted under its name."""
    renamed = path.with_name(f".{path.name}.old")
    shutil.rmtree(renamed, ignore_errors=True)
    path.rename(renamed)
    shutil.rmtree(renamed)


def _find_defect(folder: Path) -> str | None:
    """Return why a checkpoint cannot be used. If None, it is complete."""
    try:
        content = json.loads((folder / _CHECKPOINT_MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return f"format {content['format']!r}, this version reads format {_FORMAT}"
        if content["step"] != checkpoint_step(folder):
            return f"it belongs to step {content['step']!r}"
        changed = [
            name for name, digest in content["files"].items() if file_sha256(resolve_file(folder, name)) != digest
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelFormatError) as error:
        return str(error) or type(error).__name__
    return f"{changed[0]} has changed" if changed else None
