"""Saves that are killed or run out of disk space: the folder must contain the old or the new model, nothing else."""

import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import TrainerCallback

from benchmarks.faults.child import ChildEnd, run_in_child
from benchmarks.faults.model import TEXTS, tiny_embedder
from benchmarks.faults.result import Campaign
from benchmarks.faults.training import UninterruptedRun, finished_run, train_once
from promptembedder.errors import PromptEmbedderError, SaveError
from promptembedder.model import PromptEmbedder
from promptembedder.storage import MANIFEST_NAME

__all__ = ["full_disks", "kills_in_saving", "vectors_of"]

_INSTRUCTION = "Find the same thing"
_SHOWN = 10
_CHANGING_S, _ENDING_S = 0.03, 0.002
_TRIED_FIRST = 5  # number of undisturbed saves that are timed


@dataclass(frozen=True, kw_only=True)
class _Models:
    """A saved model, a model to be saved over it, and the vectors of both."""

    saved: Path
    new: PromptEmbedder
    old_vectors: np.ndarray
    new_vectors: np.ndarray

    @classmethod
    def made(cls, work: Path, seed: int) -> "_Models":
        old, new = tiny_embedder(seed=seed), tiny_embedder(seed=seed + 1)
        old.save(str(work / "saved"))
        return cls(saved=work / "saved", new=new, old_vectors=vectors_of(old), new_vectors=vectors_of(new))

    def found(self, folder: Path) -> str:
        """Return the model in a folder: `old`, `new`, `nothing`, or a description of the damage."""
        if not folder.exists():
            return "nothing"
        try:
            vectors = vectors_of(PromptEmbedder.from_pretrained(folder, device="cpu"))
        except PromptEmbedderError as error:
            return str(error)
        for name, expected in (("old", self.old_vectors), ("new", self.new_vectors)):
            if np.array_equal(vectors, expected):
                return name
        return "loads, and is neither"


def vectors_of(model: PromptEmbedder) -> np.ndarray:
    """Return vectors of a few texts, float32 [texts, dim]."""
    return model.encode(list(TEXTS), prompt=_INSTRUCTION)


def kills_in_saving(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Send SIGKILL to `save` at random moments, with and without an existing model, and check the folder's content.

    Args:
        count: Number of kills.
        on_done: Called with the number of kills so far.
    """
    draw, began = random.Random(seed), time.perf_counter()
    tried = survived = trial = 0
    failures: list[str] = []
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        models = _Models.made(Path(work), seed)
        seconds = _save_seconds(models, Path(work))
        while tried < count:
            trial += 1
            target = Path(work) / f"trial-{trial}" / "model"
            target.parent.mkdir()
            over = draw.random() < 0.7
            if over:
                shutil.copytree(models.saved, target)
            # moments: any; while files are written; when the folders are swapped; right after the swap
            begun, written = f".{target.name}-*", f".{target.name}-*/{MANIFEST_NAME}"
            moments: tuple[tuple[Callable[[], bool], float], ...] = (
                (lambda: True, seconds),
                (partial(_is_there, target.parent, begun), seconds / 2),
                (partial(_is_there, target.parent, written), _CHANGING_S),
                (partial(_is_another, target, _identity(target)), _ENDING_S),
            )
            armed, longest = draw.choice(moments)
            save = partial(models.new.save, str(target))
            end = run_in_child(save, kill_after_s=draw.uniform(0, longest), armed=armed)
            if end.killed or end.error:
                found = models.found(target)
                wrong = end.error or _wrong_after_kill(models, target, found, over=over)
                tried, survived = tried + 1, survived + (not wrong)
                ends[f"{found} over {'a model' if over else 'nothing'}" if not wrong else "wrong"] += 1
                failures += [f"trial {trial}: {wrong}"] if wrong else []
                on_done(tried)
            shutil.rmtree(target.parent)
    return Campaign(
        name="kills-saving",
        tried=tried,
        survived=survived,
        seconds=time.perf_counter() - began,
        seed=seed,
        notes=f"after the kill the folder held: {_listed(ends)}; the next save removed what the kill had left",
        failures=tuple(failures[:_SHOWN]),
    )


def _is_there(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _identity(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _is_another(folder: Path, before: int | None) -> bool:
    return _identity(folder) != before


def _save_seconds(models: _Models, work: Path) -> float:
    """Return the median duration of a few undisturbed saves in a child process."""
    folders = [work / f"timed-{number}" for number in range(_TRIED_FIRST)]
    return median(run_in_child(partial(models.new.save, str(folder))).seconds for folder in folders)


def _wrong_after_kill(models: _Models, target: Path, found: str, *, over: bool) -> str | None:
    if found not in (("old", "new") if over else ("nothing", "new")):
        return found
    models.new.save(str(target))
    if (now := models.found(target)) != "new":
        return f"saved once more it is {now}"
    strays = [path.name for path in target.parent.iterdir() if path != target]
    return f"the next save left {', '.join(strays)}" if strays else None


def full_disks(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Fill the disk while a model or a training checkpoint is saved: the error must be clear and no data lost.

    A limit on the file size simulates the full disk: a write beyond the limit fails like a write to a full disk.

    Args:
        count: Number of full disks. Every fourth one occurs in a training run.
        on_done: Called with the number of full disks so far.
    """
    draw, began = random.Random(seed), time.perf_counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        models = _Models.made(Path(work), seed)
        run = finished_run(Path(work), "softmax") if count >= 4 else None
        for trial in range(1, count + 1):
            folder = Path(work) / f"trial-{trial}"
            folder.mkdir()
            if run is not None and trial % 4 == 0:
                wrong = _full_while_training(run, folder / "run", draw)
            else:
                wrong = _full_while_saving(models, folder / "model", draw)
            failures += [f"trial {trial}: {wrong}"] if wrong else []
            shutil.rmtree(folder)
            on_done(trial)
    return Campaign(
        name="full-disks",
        tried=count,
        survived=count - len(failures),
        seconds=time.perf_counter() - began,
        seed=seed,
        notes=f"{count // 4 if run else 0} in a run, which then went on to the uninterrupted run's weights, the others "
        "in a save; reported as SaveError, every file as before; a limit on the size of files stands for the full disk",
        failures=tuple(failures[:_SHOWN]),
    )


def _full_while_saving(models: _Models, target: Path, draw: random.Random) -> str | None:
    shutil.copytree(models.saved, target)
    before = _bytes_below(target.parent)
    limit = draw.randrange(max(path.stat().st_size for path in target.iterdir()))

    def save() -> None:
        _fill_disk(limit)
        models.new.save(str(target))

    wrong = _not_told(run_in_child(save), f"{limit} bytes")
    if wrong is None and _bytes_below(target.parent) != before:
        wrong = f"with {limit} bytes files have changed"
    return wrong


def _full_while_training(run: UninterruptedRun, output: Path, draw: random.Random) -> str | None:
    recipe = run.in_folder(output)
    checkpoint = Path(recipe.run.output).parent.parent / "whole-softmax" / "checkpoint-9"
    largest = max(path.stat().st_size for path in checkpoint.iterdir())
    limit, step = draw.randrange(largest // 4, largest), draw.randint(1, recipe.optim.steps - 1)
    end = run_in_child(lambda: train_once(recipe, callbacks=[_FullDiskAt(step, limit)]))
    wrong = _not_told(end, f"{limit} bytes from step {step} on")
    if wrong is None and (output / MANIFEST_NAME).exists():
        wrong = "there is a saved model"
    if wrong is None:
        wrong = run_in_child(lambda: train_once(recipe)).error
    return wrong or run.difference(output)


class _FullDiskAt(TrainerCallback):
    def __init__(self, step: int, limit: int) -> None:
        self.step, self.limit = step, limit

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 >= self.step:
            _fill_disk(self.limit)


def _fill_disk(limit: int) -> None:
    """Limit all files that this process writes from now on to `limit` bytes."""
    import resource  # not on Windows, which has no fork either

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # makes the write fail, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _not_told(end: ChildEnd, limit: str) -> str | None:
    last = (end.error or "nothing was reported").strip().splitlines()[-1]
    return None if last.partition(":")[0].endswith(SaveError.__name__) else f"with {limit}: {last}"


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
