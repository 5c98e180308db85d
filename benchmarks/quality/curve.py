"""Scores and training time of a run while it goes on; both outlive a kill."""

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
    """Scores after so many steps and so many seconds of training, scoring and saving not counted."""

    step: int
    seconds: float
    scores: dict[str, float]


class ScoreCurve(TrainerCallback):
    """Counts the seconds of the steps alone, and scores the model after chosen ones.

    A resumed run goes on from the clock that its checkpoint was written at, and does not score again what it has.
    """

    def __init__(self, folder: Path, *, steps: Collection[int], score: Score) -> None:
        """Keep clock and points in `folder`; call `score` after each of `steps`."""
        self._folder, self._curve_path = folder, folder / "curve.jsonl"
        self._steps, self._score = frozenset(steps), score
        self.seconds = 0.0
        self._since = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take up the clock of the checkpoint; a run from the start begins at zero."""
        self._curve_path.parent.mkdir(parents=True, exist_ok=True)
        kept = [point for point in read_curve(self._curve_path) if point.step <= state.global_step]
        self._curve_path.write_text("".join(json.dumps(asdict(point)) + "\n" for point in kept), encoding="utf-8")
        self.seconds = read_clock(self._folder, state.global_step) if state.global_step else 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock; score if this is the step for it."""
        self.seconds += time.perf_counter() - self._since
        if state.global_step in self._steps:
            self.add(state.global_step, self._score())

    def add(self, step: int, scores: dict[str, float]) -> None:
        """Keep these scores as those after `step` steps."""
        self._curve_path.parent.mkdir(parents=True, exist_ok=True)
        point = CurvePoint(step=step, seconds=round(self.seconds, 3), scores=scores)
        with self._curve_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember the clock of this checkpoint."""
        clocks = {**_clocks(self._folder), str(state.global_step): self.seconds}
        (self._folder / _CLOCK_NAME).write_text(json.dumps(clocks), encoding="utf-8")


def read_clock(folder: Path, step: int) -> float:
    """Seconds of training up to the checkpoint of `step`; 0 if there was none."""
    return _clocks(folder).get(str(step), 0.0)


def _clocks(folder: Path) -> dict[str, float]:
    path = folder / _CLOCK_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_curve(path: Path) -> list[CurvePoint]:
    """The points of a curve file; a last line cut off by a kill is left out."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            points.append(CurvePoint(**json.loads(line)))
        except ValueError:
            continue
    return points
