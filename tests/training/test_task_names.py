"""Laws of task names: any file name or task name trains, and no name changes the training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptembedder.model import PromptEmbedder
from promptembedder.training import DataConfig, Recipe, TrainingResult, load_training_data, train_model

# attributes of torch modules, a name with dots, and parts of parameter names that the optimizer's groups look for
NAMES = ("train", "eval", "type", "to", "half", "forward", "v1.2", "bias", "x.alignment.y", "0")


def run(recipe: Recipe) -> tuple[PromptEmbedder, TrainingResult]:
    model = PromptEmbedder.create(config=recipe.model, device="cpu", seed=recipe.run.seed)
    return model, train_model(model, load_training_data(recipe.data, seed=recipe.run.seed), recipe)


def write_mixture(path: Path, names: tuple[str, ...]) -> DataConfig:
    """Write a mixture in which tasks of these names train on the same file."""
    rows = [{"anchor": f"a {word}", "positive": f"the {word}"} for word in "red green blue cold warm fast".split()]
    path.mkdir()
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shared = {"file": "rows.jsonl", "instruction": "Find it", "document_instruction": None, "in_batch_negatives": True}
    tasks = [{"name": name, **shared} for name in names]
    (path / "mixture.json").write_text(json.dumps(tasks), encoding="utf-8")
    return DataConfig(mixture=str(path / "mixture.json"), held_out=2)


def test_tasks_named_like_module_attributes_train_and_keep_their_names_in_the_metrics(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Task names became names of torch submodules: `train`, `to` or a name with a dot ended in a raw KeyError."""
    _, result = run(recipe_of("run", steps=2, data=write_mixture(tmp_path / "data", NAMES)))
    assert {f"eval_{name}_loss" for name in NAMES} <= result.metrics.keys()


@pytest.mark.parametrize("name", ["bias", "x.deep.y", "type"])
def test_task_name_does_not_change_the_trained_weights(
    name: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Weight decay and learning rates are chosen by parameter names, of which the task's name was a part."""
    trained = []
    for number, given in enumerate(("pairs", name)):
        recipe = recipe_of(f"run{number}", steps=3, data=write_mixture(tmp_path / f"data{number}", (given,)))
        trained.append(list(run(recipe)[0].encoder.trained_weights()))
    for plain, named in zip(*trained, strict=True):
        assert torch.equal(plain, named)


@pytest.mark.parametrize("file", ["train.csv", "type.csv", "to.v2.csv", ".csv"])
def test_file_named_like_a_module_attribute_trains(file: str, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """`train --data train.csv` ended in a raw KeyError."""
    lines = [f"a {word},the {word}\n" for word in "red green blue cold warm fast".split()]
    (tmp_path / file).write_text("anchor,positive\n" + "".join(lines), encoding="utf-8")
    data = DataConfig(pairs=str(tmp_path / file), instructions=("Find it",))
    _, result = run(recipe_of("run", steps=2, data=data))
    assert result.steps == 2
