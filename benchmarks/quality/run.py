"""One run of the quality benchmark: train one method, score it during and after training, and save the results."""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from benchmarks.quality.curve import ScoreCurve, read_clock, read_curve
from benchmarks.quality.methods import Method
from benchmarks.quality.wordings import held_out_scores
from promptembedder.errors import ConfigError
from promptembedder.evaluation import EvaluationTask, score_tasks
from promptembedder.model import StaticEncoder, load_encoder
from promptembedder.storage import MANIFEST_NAME, file_sha256, from_mapping, to_mapping
from promptembedder.training import Recipe, TrainingData, load_training_data, new_model, prepare_output, train_model

__all__ = ["QualityRun", "RunData", "config_key", "finished_run", "recipe_of", "run_method", "without_held_out"]

RESULT_NAME = "result.json"
_READ_BY_ALL = ("reader", "max_seq_length", "pooling")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Training and evaluation data of every method.

    Attributes:
        tasks: Tasks scored at the end. `curve_tasks` (smaller subsamples) are scored during training and at the end.
        points: Steps after which `curve_tasks` are scored.
    """

    tasks: Sequence[EvaluationTask]
    curve_tasks: Sequence[EvaluationTask]
    points: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QualityRun:
    """Result of one run.

    Attributes:
        budget: `steps` (as many steps as every method), `seconds` (as many steps as fit into the time of the first
            LoRA) or `none` (not trained).
        seconds: Duration of the training steps alone.
        scores: Scores by task, 0..100, and their mean.
        held_out: nDCG@10 x 100 on held-out rows of trained tasks, by the kind of wording. See `held_out_scores`.
        fallbacks: Scores of the same trained weights with another fallback for unseen instructions, by name.
        key: Hash of the settings of the run.
    """

    method: str
    reader: str
    budget: str
    steps: int
    seconds: float
    seed: int
    scores: dict[str, float]
    mean: float
    curve: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, float] = field(default_factory=dict)
    fallbacks: dict[str, dict[str, float]] = field(default_factory=dict)
    trained_parameters: int = 0
    key: str = ""


def config_key(recipe: Recipe, tasks: Sequence[EvaluationTask]) -> str:
    """Return a hash of the settings that affect a run's scores, without file locations and unused soft tokens."""
    data = dataclasses.replace(recipe.data, mixture=_digest(recipe.data.mixture))
    run = dataclasses.replace(recipe.run, output="")
    mapping = to_mapping(dataclasses.replace(recipe, data=data, run=run))
    if recipe.baseline is not None and recipe.baseline.kind != "static":
        mapping["model"] = {name: mapping["model"][name] for name in _READ_BY_ALL}
    if recipe.text_cache.kind == "exact":  # affects the duration of a run but not its result
        del mapping["text_cache"]
    for backbone in (mapping["model"]["reader"], mapping["model"].get("prompter", {}).get("backbone", {})):
        if backbone.get("quantization") is None:  # keeps the hash of runs made before the option existed
            backbone.pop("quantization", None)
    sampled = [(task.name, task.rows_used, task.documents_used, task.seed) for task in tasks]
    return hashlib.sha256(json.dumps([mapping, sampled], sort_keys=True).encode()).hexdigest()[:16]


def _digest(mixture: str | None) -> str:
    return file_sha256(Path(mixture)) if mixture is not None else ""


def finished_run(folder: Path, key: str) -> QualityRun | None:
    """Load the finished run in `folder`, or return None if the run is not finished.

    Raises:
        ConfigError: If the run has other settings.
    """
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    run = QualityRun(**json.loads(path.read_text(encoding="utf-8")))
    if run.key != key:
        raise ConfigError(f"{folder} holds a run of other settings. Choose another work folder, or delete this one.")
    return run


def run_method(
    name: str, method: Method, recipe: Recipe, data: RunData, *, budget: str, callbacks: Sequence[TrainerCallback] = ()
) -> QualityRun:
    """Train (or only open) the method and score it. Resume an interrupted run, and load a finished one.

    Raises:
        ConfigError: If the run's folder has other settings.
    """
    folder = Path(recipe.run.output)
    key = config_key(recipe, data.tasks)
    done = finished_run(folder, key)
    if done is not None:
        return done
    if method.frozen or method.untrained:
        run = _untrained_run(name, method, recipe, data)
    else:
        run = _trained_run(name, method, recipe, data, budget, callbacks)
    run = dataclasses.replace(run, key=key)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{RESULT_NAME}"
    scratch.write_text(json.dumps(dataclasses.asdict(run), indent=1), encoding="utf-8")
    scratch.replace(folder / RESULT_NAME)
    return run


def _untrained_run(name: str, method: Method, recipe: Recipe, data: RunData) -> QualityRun:
    pairs = load_training_data(recipe.data, seed=recipe.run.seed)
    if method.untrained:
        model: SentenceTransformer = new_model(recipe, pairs)
    else:
        model = load_encoder(f"frozen:{method.frozen}:{recipe.model.reader.source}").model
        model.max_seq_length = recipe.model.max_seq_length
    scores = _scores(model, data.tasks)
    return QualityRun(
        method=name,
        reader=recipe.model.reader.source,
        budget="none",
        steps=0,
        seconds=0.0,
        seed=recipe.run.seed,
        scores=scores,
        mean=statistics.fmean(scores.values()),
        held_out=held_out_scores(model, pairs),
    )


def _trained_run(
    name: str, method: Method, recipe: Recipe, data: RunData, budget: str, callbacks: Sequence[TrainerCallback]
) -> QualityRun:
    pairs = load_training_data(recipe.data, seed=recipe.run.seed)
    folder = Path(recipe.run.output)
    if (folder / MANIFEST_NAME).is_file():  # trained, but interrupted before the scores were written
        model = load_encoder(str(folder)).model
    else:
        checkpoint = prepare_output(recipe)
        model = new_model(recipe, pairs)
        curve = ScoreCurve(folder, steps=data.points, score=lambda: _scored_on_the_way(model, data.curve_tasks))
        train_model(model, without_held_out(pairs), recipe, callbacks=[curve, *callbacks], checkpoint=checkpoint)
    scores = _scores(model, data.tasks)
    return QualityRun(
        method=name,
        reader=recipe.model.reader.source,
        budget=budget,
        steps=recipe.optim.steps,
        seconds=round(read_clock(folder, recipe.optim.steps), 3),
        seed=recipe.run.seed,
        scores=scores,
        mean=statistics.fmean(scores.values()),
        curve=[dataclasses.asdict(point) for point in read_curve(folder / "curve.jsonl")],
        held_out=held_out_scores(model, pairs),
        fallbacks={other: _under_fallback(model, to, data.tasks) for other, to in method.fallbacks.items()},
        trained_parameters=sum(weight.numel() for weight in model[0].trained_weights()),
    )


def recipe_of(base: dict[str, Any], method: Method) -> Recipe:
    """Return the benchmark's recipe with the method's changes."""
    return from_mapping(Recipe, _merged(base, method.changes))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in changes.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def _scores(model: SentenceTransformer, tasks: Sequence[EvaluationTask]) -> dict[str, float]:
    model.eval()
    return {score.task: round(score.score, 3) for score in score_tasks(model, tasks)}


def _scored_on_the_way(model: SentenceTransformer, tasks: Sequence[EvaluationTask]) -> dict[str, float]:
    was_training = model.training
    scores = _scores(model, tasks)
    model.train(was_training)
    return scores


def _under_fallback(model: SentenceTransformer, fallback: str, tasks: Sequence[EvaluationTask]) -> dict[str, float]:
    encoder = model[0]
    assert isinstance(encoder, StaticEncoder)
    own = encoder.baseline
    encoder.use_fallback(fallback)
    try:
        return _scores(model, tasks)
    finally:
        encoder.use_fallback(own.fallback)


def without_held_out(data: TrainingData) -> TrainingData:
    """Return the data without held-out rows, on which the trainer would compute an unused loss."""
    return TrainingData({name: dataclasses.replace(task, held_out=None) for name, task in data.tasks.items()})
