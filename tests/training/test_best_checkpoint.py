"""Laws of the length and the end of a run: epochs, best step, early stopping, and a start from a saved model."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError
from promptembedder.training import (
    DataConfig,
    EvaluationConfig,
    Recipe,
    TrainingResult,
    load_training_data,
    new_model,
    prepare_output,
    train_model,
)

RecipeOf = Callable[..., Recipe]
TEXTS = ["a red house", "the river is cold"]


class ScoreByStep(BaseEvaluator):
    """Validation score that is known beforehand."""

    def __init__(self, scores: Mapping[int, float]) -> None:
        super().__init__()
        self.scores, self.primary_metric = scores, "known"

    def __call__(self, model: Any, output_path: Any = None, epoch: float = -1, steps: int = -1) -> dict[str, float]:
        return {"known": self.scores.get(steps, 0.0)}


class StopAt(TrainerCallback):
    """Kills the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def train(recipe: Recipe, *, scores: Mapping[int, float] | None = None, **options: Any) -> TrainingResult:
    checkpoint = prepare_output(recipe)
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    evaluator = None if scores is None else ScoreByStep(scores)
    model = new_model(recipe, data, device="cpu")
    return train_model(model, data, recipe, evaluator=evaluator, checkpoint=checkpoint, **options)


def keeping_best(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, evaluation=EvaluationConfig(every=1, keep_best=True, **changes))


def vectors(folder: Path) -> np.ndarray:
    return PromptEmbedder.from_pretrained(folder, device="cpu").encode(TEXTS, prompt="Find it")


def test_the_weights_of_the_best_step_are_saved_and_its_checkpoint_is_not_deleted(recipe_of: RecipeOf) -> None:
    recipe = keeping_best(recipe_of(steps=5, keep_checkpoints=2))
    result = train(recipe, scores={1: 0.1, 2: 0.5, 3: 0.3, 4: 0.2, 5: 0.1})
    assert (result.steps, result.best_step) == (5, 2)
    np.testing.assert_array_equal(vectors(result.output), vectors(result.output / "checkpoint-2"))
    assert not np.array_equal(vectors(result.output), vectors(result.output / "checkpoint-5"))


@pytest.mark.parametrize("killed", [False, True])
def test_training_stops_when_the_score_no_longer_rises_also_after_a_kill(recipe_of: RecipeOf, killed: bool) -> None:
    recipe = keeping_best(recipe_of(steps=9), patience=2)
    scores = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.2, 5: 0.9}
    if killed:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, scores=scores, callbacks=[StopAt(3)])
    result = train(recipe, scores=scores)
    assert (result.resumed_from, result.steps, result.best_step) == (3 if killed else 0, 4, 2)


def test_without_a_benchmark_the_best_step_has_the_lowest_held_out_loss(recipe_of: RecipeOf) -> None:
    recipe = keeping_best(recipe_of(steps=3))
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, held_out=8))
    result = train(recipe)
    lines = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    scores = {
        line["step"]: line["eval_validation_score"] for line in reversed(lines) if "eval_validation_score" in line
    }
    assert result.best_step == max(scores, key=lambda step: scores[step])
    losses = [value for name, value in result.metrics.items() if name.endswith("_loss")]
    assert max(scores.values()) == pytest.approx(-sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 10)])
def test_epochs_count_passes_over_the_data(recipe_of: RecipeOf, mixture: Path, epochs: float, steps: int) -> None:
    recipe = recipe_of(steps=1, data=DataConfig(mixture=str(mixture), tasks=("labels",)))  # 40 rows
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, epochs=epochs, batch_size=12))
    assert train(recipe).steps == steps


def test_training_continues_a_saved_model_under_a_new_schedule(recipe_of: RecipeOf) -> None:
    first = train(recipe_of("first", steps=3))
    recipe = recipe_of("second", steps=2, initial_model=str(first.output))
    data = load_training_data(recipe.data, seed=0)
    start = new_model(recipe, data, device="cpu")
    np.testing.assert_array_equal(start.encode(TEXTS, prompt="Find it"), vectors(first.output))
    second = train(recipe)
    assert (second.steps, second.resumed_from) == (2, 0)
    assert not np.array_equal(vectors(second.output), vectors(first.output))
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_soft_tokens=4))
    with pytest.raises(ConfigError, match=r"differs from `model` in the recipe\. Use train --from"):
        new_model(other, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_best": True}, "Set evaluation.every"),
        ({"every": 5, "patience": 2}, "Set evaluation.keep_best=true"),
        ({"every": 5, "keep_best": True, "patience": 0}, "patience must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_find_a_best_step_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**options)


def test_a_best_step_needs_a_score(recipe_of: RecipeOf) -> None:
    with pytest.raises(ConfigError, match="needs a validation score. Set data.held_out or evaluation.sts"):
        train(keeping_best(recipe_of()))
