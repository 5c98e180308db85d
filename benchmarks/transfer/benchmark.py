"""Transfer benchmark: training steps that a transferred model needs to match a model trained on the new reader."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.quality.curve import CurvePoint, ScoreCurve, read_curve
from benchmarks.quality.methods import METHODS, chosen_methods
from benchmarks.quality.mixture_config import MixtureConfig
from benchmarks.quality.run import config_key, recipe_of, without_held_out
from benchmarks.quality.wordings import held_out_scores
from promptembedder.backbone import BackboneConfig, find_source
from promptembedder.data import read_mixture
from promptembedder.errors import ConfigError
from promptembedder.evaluation import EvaluationTask, score_tasks, subsample
from promptembedder.method import AlignmentConfig
from promptembedder.model import PromptedSentenceTransformer, PromptEmbedder, TransferConfig
from promptembedder.storage import MANIFEST_NAME, write_json
from promptembedder.training import (
    Recipe,
    TrainingData,
    build_transferred_model,
    load_training_data,
    new_model,
    prepare_output,
    train_model,
)

__all__ = ["START_NAMES", "MoveBenchConfig", "MoveRun", "bench_move"]

OnMessage = Callable[[str], None]

START_NAMES = ("ridge", "procrustes", "vocabulary", "fresh", "random")
_NATIVE = "promptembedder"
_RESULT_NAME = "result.json"


@dataclass(frozen=True, kw_only=True)
class MoveBenchConfig(MixtureConfig):
    """Configuration of the transfer benchmark.

    Attributes:
        routes: Pairs of source and target readers.
        starts: Initial alignments of the transferred model: `ridge` or `procrustes` (transferred), `vocabulary`,
            `fresh` (ridge from the prompter's table alone) or `random`.
        native: Methods trained on the new reader from scratch. Names of the quality benchmark's methods.
        source_steps: Training steps of the source model.
        points: Steps after which everything is scored, in ascending order. 0 is before training.
    """

    routes: tuple[tuple[str, str], ...] = (("smollm2-135m", "gemma3-270m"), ("gemma3-270m", "smollm2-135m"))
    starts: tuple[str, ...] = ("ridge", "random")
    native: tuple[str, ...] = (_NATIVE, "lora-1e-3")
    source_steps: int = 200
    points: tuple[int, ...] = (0, 10, 25, 50, 100, 200)
    seed: int = 0
    work: str = "runs/move"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_steps < 1:
            raise ConfigError(f"source_steps must be at least 1, got {self.source_steps}.")
        if list(self.points) != sorted(set(self.points)) or not self.points or self.points[-1] < 1:
            raise ConfigError(f"points must rise and end above 0, got {list(self.points)}. Try 0,10,25,50.")
        unknown = [name for name in self.starts if name not in START_NAMES]
        if unknown:
            raise ConfigError(f"unknown start {unknown[0]!r}. Use some of: {', '.join(START_NAMES)}.")
        for name, method in chosen_methods(self.native).items():
            if method.frozen or method.untrained:
                raise ConfigError(f"{name!r} is not trained: it has no score over steps. Leave it out.")


@dataclass(frozen=True, kw_only=True)
class MoveRun:
    """Run of one method on the new reader, with its scores during training.

    Attributes:
        method: `moved`, or the method trained on the new reader from scratch.
        start: Initial alignment of a transferred model. Empty for other methods.
        points: Scored points. Scores are named seen/... and unseen/..., by the presence of the instruction in training.
    """

    source: str
    target: str
    method: str
    start: str
    trained_bytes: int
    points: tuple[CurvePoint, ...]


def bench_move(
    config: MoveBenchConfig, *, tell: OnMessage = lambda _: None, callbacks: Sequence[TrainerCallback] = ()
) -> list[MoveRun]:
    """Run the benchmark and return its runs. Finished runs in the work folder are loaded.

    Raises:
        DataError: If a file is missing or malformed.
        ConfigError: If the work folder contains runs with other settings.
        BackboneError: If a reader is missing, or the vocabularies share too few strings.
    """
    for name in dict.fromkeys([config.prompter, *(reader for route in config.routes for reader in route)]):
        find_source(name)
    read_mixture(Path(config.mixture))
    tasks = [subsample(task, min(config.limit, task.rows), seed=0) for task in config.evaluation_tasks()]
    bench = _Bench(config, tasks, tell, callbacks)
    runs = []
    for source, target in config.routes:
        runs += [bench.moved(source, target, start) for start in config.starts]
        runs += [bench.native(source, target, name) for name in config.native]
    return runs


@dataclass(frozen=True)
class _Bench:
    config: MoveBenchConfig
    tasks: Sequence[EvaluationTask]
    tell: OnMessage
    callbacks: Sequence[TrainerCallback]

    def moved(self, source: str, target: str, start: str) -> MoveRun:
        recipe = self._recipe(target, _NATIVE, f"{_named(source)}-{_named(target)}-moved-{start}")

        def make() -> PromptedSentenceTransformer:
            model = PromptEmbedder.from_pretrained(self._source(source))
            kind = "vocabulary" if start == "vocabulary" else "linear"
            closed = "ridge" if start in ("vocabulary", "fresh") else start
            move = TransferConfig(
                reader=BackboneConfig(source=target, dtype=self.config.dtype),
                alignment=AlignmentConfig(kind=kind, start=closed),
                compose_alignment=start not in ("fresh", "random"),
            )
            asked = [task.instruction for task in self.tasks]
            moved, _ = build_transferred_model(model, move, self._data(recipe), also=asked, seed=self.config.seed)
            return moved

        trained, points = self._run(recipe, make, key_parts=[source, start, self.config.source_steps])
        return MoveRun(source=source, target=target, method="moved", start=start, trained_bytes=trained, points=points)

    def native(self, source: str, target: str, method: str) -> MoveRun:
        recipe = self._recipe(target, method, f"{_named(target)}-{method}")
        trained, points = self._run(recipe, lambda: new_model(recipe, self._data(recipe)))
        return MoveRun(source=source, target=target, method=method, start="", trained_bytes=trained, points=points)

    def _source(self, reader: str) -> str:
        """Return the folder of the source model. Train the model if it is missing."""
        recipe = self._recipe(reader, _NATIVE, f"source-{_named(reader)}", steps=self.config.source_steps)
        folder, key = Path(recipe.run.output), config_key(recipe, [])
        if _held(folder, key) is None:
            self.tell(f"training the model to move: {reader}, {self.config.source_steps} steps")
            checkpoint = _checkpoint(recipe)
            data = self._data(recipe)
            model = new_model(recipe, data)
            train_model(model, without_held_out(data), recipe, callbacks=self.callbacks, checkpoint=checkpoint)
            write_json(folder / _RESULT_NAME, {"key": key})
        return str(folder)

    def _run(
        self, recipe: Recipe, make: Callable[[], PromptedSentenceTransformer], *, key_parts: Sequence[object] = ()
    ) -> tuple[int, tuple[CurvePoint, ...]]:
        """Return the number of trained bytes and the scored points, which depend on recipe, tasks and extra values."""
        folder, key = Path(recipe.run.output), self._key(recipe, key_parts)
        held = _held(folder, key)
        if held is None:
            held = {"key": key, **self._trained(recipe, make)}
            write_json(folder / _RESULT_NAME, held)
        return held["trained_bytes"], tuple(CurvePoint(**point) for point in held["points"])

    def _trained(self, recipe: Recipe, make: Callable[[], PromptedSentenceTransformer]) -> dict[str, Any]:
        folder = Path(recipe.run.output)
        self.tell(f"{folder.name}: {recipe.optim.steps} steps")
        checkpoint = _checkpoint(recipe)
        data, model = self._data(recipe), make()
        curve = ScoreCurve(folder, steps=self.config.points, score=lambda: self._scores(model, data))
        if 0 in self.config.points and not any(point.step == 0 for point in read_curve(folder / "curve.jsonl")):
            curve.add(0, self._scores(model, data))
        trained = 4 * sum(weight.numel() for weight in model.text_encoder.trained_weights())
        train_model(model, without_held_out(data), recipe, callbacks=[curve, *self.callbacks], checkpoint=checkpoint)
        points = [dataclasses.asdict(point) for point in read_curve(folder / "curve.jsonl")]
        return {"trained_bytes": trained, "points": points}

    def _scores(self, model: PromptedSentenceTransformer, data: TrainingData) -> dict[str, float]:
        was_training = model.training
        model.eval()
        kept = held_out_scores(model, data, kinds=("seen", "unseen"))
        found = {f"{kind}/held-out": score for kind, score in kept.items()}
        found |= {f"unseen/{score.task}": round(score.score, 3) for score in score_tasks(model, self.tasks)}
        model.train(was_training)
        return found

    def _data(self, recipe: Recipe) -> TrainingData:
        return load_training_data(recipe.data, seed=recipe.run.seed)

    def _recipe(self, reader: str, method: str, name: str, *, steps: int | None = None) -> Recipe:
        config = self.config
        output = f"{config.work}/{name}-s{config.seed}"
        base = config.recipe(reader, steps=steps or config.points[-1], seed=config.seed, output=output)
        return recipe_of(base, METHODS[method])

    def _key(self, recipe: Recipe, key_parts: Sequence[object]) -> str:
        """Return a hash of all settings that affect a run's scores."""
        whole = [config_key(recipe, self.tasks), self.config.points, *key_parts]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


def _held(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the result of a finished run in its folder, or None.

    Raises:
        ConfigError: If the run has other settings.
    """
    path = folder / _RESULT_NAME
    if not path.is_file():
        return None
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if held["key"] != key:
        raise ConfigError(f"{folder} holds a run of other settings. Choose another work folder, or delete it.")
    return held


def _checkpoint(recipe: Recipe) -> Path | None:
    """Return the checkpoint of an unfinished run. A run that was interrupted before scoring starts again."""
    return prepare_output(recipe, overwrite=(Path(recipe.run.output) / MANIFEST_NAME).is_file())


def _named(reader: str) -> str:
    return reader.replace(":", "-").replace("/", "-")
