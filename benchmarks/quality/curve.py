"""Scores and training time during a run, stored so that both survive a kill."""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["CurvePoint", "ScoreCurve", "read_clock", "read_curve"]

_CLOCK_NAME = "clock.json"

Score = Callable[[], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Scores after a number of steps and of seconds of training. The seconds exclude scoring and saving."""

    step: int
    seconds: float
    scores: dict[str, float]


class ScoreCurve(TrainerCallback):
    """Callback that measures the time of the training steps and scores the model after chosen steps.

    A resumed run restores the clock of its checkpoint and does not repeat scores that it already has.
    """

    def __init__(self, folder: Path, *, steps: Collection[int], score: Score) -> None:
        """Store clock and points in `folder`, and call `score` after each of `steps`."""
        self._folder, self._curve_path = folder, folder / "curve.jsonl"
        self._steps, self._score = frozenset(steps), score
        self.seconds = 0.0
        self._since = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the clock of the checkpoint. A new run starts at zero."""
        self._curve_path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [point for point in read_curve(self._curve_path) if point.step <= state.global_step]
        self._curve_path.write_text("".join(json.dumps(asdict(point)) + "\n" for point in earlier), encoding="utf-8")
        self.seconds = read_clock(self._folder, state.global_step) if state.global_step else 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock, and score if this is one of the chosen steps."""
        self.seconds += time.perf_counter() - self._since
        if state.global_step in self._steps:
            self.add(state.global_step, self._score())

    def add(self, step: int, scores: dict[str, float]) -> None:
        """Store the scores after `step` steps."""
        self._curve_path.parent.mkdir(parents=True, exist_ok=True)
        point = CurvePoint(step=step, seconds=round(self.seconds, 3), scores=scores)
        with self._curve_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Store the clock of this checkpoint."""
        clocks = {**_clocks(self._folder), str(state.global_step): self.seconds}
        (self._folder / _CLOCK_NAME).write_text(json.dumps(clocks), encoding="utf-8")


def read_clock(folder: Path, step: int) -> float:
    """Return the seconds of training up to the checkpoint of `step`, or 0 if there is no checkpoint."""
    return _clocks(folder).get(str(step), 0.0)


def _clocks(folder: Path) -> dict[str, float]:
    path = folder / _CLOCK_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_curve(path: Path) -> list[CurvePoint]:
    """Return the points of a curve file without an incomplete last line."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            points.append(CurvePoint(**json.loads(line)))
        except ValueError:
            continue
    return points
