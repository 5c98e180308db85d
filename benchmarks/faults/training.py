"""Training runs that are killed and resumed: the result must equal the uninterrupted run bit for bit."""

import dataclasses
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.faults.child import run_in_child
from benchmarks.faults.model import tiny_recipe, write_pairs
from benchmarks.faults.result import Campaign
from promptembedder.errors import DataError
from promptembedder.model import PromptEmbedder
from promptembedder.storage import MANIFEST_NAME
from promptembedder.training import Recipe, load_training_data, prepare_output, train_model

__all__ = ["UninterruptedRun", "finished_run", "kills_in_training", "train_once"]

_STEPS, _SAVE_EVERY = 10, 3
_MAX_KILLS = 4  # maximum number of kills of one run
_CLOCK = ("seconds", "runtime", "per_second")
_RELAXATIONS = ("softmax", "gumbel")  # gumbel draws random numbers in every step
_AIMED, _WRITING_S = 0.4, 0.05  # share of kills that wait for a checkpoint, and the seconds that writing one takes
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class UninterruptedRun:
    """Reference for the disturbed runs of a recipe.

    Attributes:
        recipe: Recipe of this run. The disturbed runs have other output folders.
        seconds: Duration of the run.
        result: Result of the run. See `_result_of`.
    """

    recipe: Recipe
    seconds: float
    result: dict[str, Any]

    def in_folder(self, output: Path) -> Recipe:
        """Return the recipe with another output folder."""
        return dataclasses.replace(self.recipe, run=dataclasses.replace(self.recipe.run, output=str(output)))

    def difference(self, output: Path) -> str | None:
        """Return the first difference between a finished disturbed run and this run. None if they are equal."""
        found = _result_of(output)
        wrong = [name for name in {**self.result, **found} if self.result.get(name) != found.get(name)]
        return f"{', '.join(sorted(wrong))} differ" if wrong else None


def kills_in_training(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Send SIGKILL to runs at random moments, some repeatedly, resume them, and compare weights and metrics.

    Args:
        count: Number of kills.
        on_done: Called with the number of kills so far.
    """
    draw, began = random.Random(seed), time.perf_counter()
    tried = survived = runs = 0
    failures: list[str] = []
    moments: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        expected = [finished_run(Path(work), kind) for kind in _RELAXATIONS]
        while tried < count:
            run = expected[runs % len(expected)]
            runs += 1
            output = Path(work) / f"run-{runs}"
            planned = min(draw.randint(1, _MAX_KILLS), count - tried)
            kills = [(draw.random() < _AIMED, draw.random()) for _ in range(planned)]
            found, wrong = _disturbed(run, output, kills)
            moments.update(found)
            tried += max(len(found), bool(wrong))
            survived += 0 if wrong else len(found)
            if wrong:
                failures.append(f"run {runs} (killed {', '.join(found) or 'never'}): {wrong}")
            shutil.rmtree(output, ignore_errors=True)
            on_done(tried)
    counts = ", ".join(f"{number} {moment}" for moment, number in sorted(moments.items()))
    return Campaign(
        name="kills-training",
        tried=tried,
        survived=survived,
        seconds=time.perf_counter() - began,
        seed=seed,
        notes=f"{runs} runs of {_STEPS} steps, relaxations {' and '.join(_RELAXATIONS)}; killed {counts}; weights, "
        "metrics and the last checkpoint's state of training bit for bit those of the uninterrupted run",
        failures=tuple(failures[:_SHOWN]),
    )


def finished_run(work: Path, relaxation: str) -> UninterruptedRun:
    """Train an undisturbed run of `tiny_recipe` in a child process.

    Raises:
        DataError: If the run fails.
    """
    output = work / f"whole-{relaxation}"
    recipe = tiny_recipe(write_pairs(work / "pairs.jsonl"), output, steps=_STEPS, save_every=_SAVE_EVERY, log_every=1)
    kind = dataclasses.replace(recipe.model.relaxation, kind=relaxation)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, relaxation=kind))
    end = run_in_child(lambda: train_once(recipe))
    if end.error:
        raise DataError(f"a run that nothing disturbs fails: {end.error}")
    return UninterruptedRun(recipe=recipe, seconds=end.seconds, result=_result_of(output))


def train_once(recipe: Recipe, *, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Start or resume the run, like `promptembedder train`."""
    checkpoint = prepare_output(recipe)
    model = PromptEmbedder.create(config=recipe.model, device="cpu", seed=recipe.run.seed)
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    train_model(model, data, recipe, checkpoint=checkpoint, callbacks=callbacks)


def _disturbed(
    run: UninterruptedRun, output: Path, kills: Sequence[tuple[bool, float]]
) -> tuple[list[str], str | None]:
    """Kill a run repeatedly, then let it finish. Return the moments of the kills and the difference to the reference.

    Args:
        kills: For each kill, True if it waits for a checkpoint that is being written, and the waiting time as a share
            of the duration of the run or of the writing.
    """
    recipe = run.in_folder(output)
    moments: list[str] = []
    for aimed, share in kills:
        if (output / MANIFEST_NAME).is_file():  # the run was done before the kill
            break
        end = run_in_child(
            lambda: train_once(recipe),
            kill_after_s=share * (_WRITING_S if aimed else run.seconds),
            armed=(lambda: any(output.glob(".checkpoint-*"))) if aimed else (lambda: True),
        )
        if end.error:
            return moments, end.error.strip().splitlines()[-1]
        if end.killed:
            moments.append(_moment(output))
    if not (output / MANIFEST_NAME).is_file():
        end = run_in_child(lambda: train_once(recipe))
        if end.error:
            return moments, end.error.strip().splitlines()[-1]
    return moments, run.difference(output)


def _moment(output: Path) -> str:
    """Return the progress of a killed run, determined from its files."""
    if (output / MANIFEST_NAME).is_file():
        return "when all was saved"
    if list(output.glob(".checkpoint-*")):
        return "while writing a checkpoint"
    if list(output.parent.glob(f".{output.name}-*")):
        return "while saving the model"
    return "after a checkpoint" if list(output.glob("checkpoint-*")) else "before a checkpoint"


def _result_of(output: Path) -> dict[str, Any]:
    """Return the state that must not depend on kills: weights, metrics without times, last checkpoint."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    checkpoints = sorted(output.glob("checkpoint-*"))
    files = [*output.glob("*.safetensors"), *checkpoints[-1].glob("*.safetensors")]
    return {
        "metrics": [
            {name: value for name, value in json.loads(line).items() if not any(word in name for word in _CLOCK)}
            for line in lines
        ],
        "checkpoints": [path.name for path in checkpoints],
        "training_state.json": (checkpoints[-1] / "training_state.json").read_text(encoding="utf-8"),
        **{str(path.relative_to(output)): path.read_bytes() for path in files},
    }
