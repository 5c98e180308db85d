"""Baselines train as the method does: from the same recipe, data and trainer, and as resumably."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from promptembedder.errors import ConfigError
from promptembedder.model import (
    BaselineConfig,
    BaselineEmbedder,
    PooledEncoder,
    PromptedSentenceTransformer,
    PromptEmbedder,
    StaticEncoder,
    load_encoder,
)
from promptembedder.storage import from_mapping, to_mapping
from promptembedder.training import (
    DataConfig,
    Recipe,
    TrainingResult,
    load_training_data,
    new_model,
    prepare_output,
    train_model,
)

pytestmark = pytest.mark.slow

PAIRS = ("Find the same thing", "Find it", "Which one is meant?")
LABELS = ("Find the same kind", "Find it", "Which one is meant?")
DEFAULT = "Represent the text for retrieval"


class _KilledError(Exception):
    """Stands for a kill: the process does no more of its own."""


class _KillAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise _KilledError


class _Rates(TrainerCallback):
    """Learning rates at their height, by the trained weight's name; ends the run before it begins."""

    def __init__(self) -> None:
        self.found: dict[str, set[float]] = {}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, model: Any = None, **_: Any
    ) -> None:
        names = {id(weight): name for name, weight in model.named_parameters()}
        for group in optimizer.param_groups:
            for weight in group["params"]:
                self.found.setdefault(names[id(weight)], set()).add(group["initial_lr"])
        raise _KilledError


@pytest.fixture
def baseline_recipe(recipe_of: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """`baseline_recipe("lora", steps=3)`; `model` changes the model's configuration, `changes` the baseline's."""

    def made(
        kind: str | None,
        name: str = "run",
        *,
        model: dict[str, Any] | None = None,
        changes: dict[str, Any] | None = None,
        **run: Any,
    ) -> Recipe:
        recipe = recipe_of(name, **run)
        baseline = None if kind is None else BaselineConfig(kind=kind, lora_rank=4, **(changes or {}))
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **(model or {})), baseline=baseline)

    return made


def run(recipe: Recipe, **arguments: Any) -> tuple[PromptedSentenceTransformer, TrainingResult]:
    checkpoint = prepare_output(recipe)
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    model = new_model(recipe, data, device="cpu")
    return model, train_model(model, data, recipe, checkpoint=checkpoint, **arguments)


def losses_of(recipe: Recipe) -> list[tuple[int, float]]:
    lines = (Path(recipe.run.output) / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]


# -- what a recipe makes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "model_type", "encoder_type"),
    [
        ("static", BaselineEmbedder, StaticEncoder),
        ("lora", BaselineEmbedder, PooledEncoder),
        ("full", BaselineEmbedder, PooledEncoder),
    ],
)
def test_a_recipe_makes_the_baseline_that_it_names(
    kind: str, model_type: type, encoder_type: type, baseline_recipe: Callable[..., Recipe]
) -> None:
    recipe = baseline_recipe(kind)
    model = new_model(recipe, load_training_data(recipe.data, seed=0), device="cpu")
    assert isinstance(model, model_type)
    assert isinstance(model.text_encoder, encoder_type)
    assert model.text_encoder.baseline.kind == kind
    assert model.text_encoder.config == recipe.model
    assert from_mapping(Recipe, json.loads(json.dumps(to_mapping(recipe)))) == recipe


def test_without_a_baseline_it_makes_the_method(baseline_recipe: Callable[..., Recipe]) -> None:
    recipe = baseline_recipe(None)
    assert isinstance(new_model(recipe, load_training_data(recipe.data, seed=0), device="cpu"), PromptEmbedder)


def test_the_runs_seed_draws_the_adapters(recipe_of: Callable[..., Recipe]) -> None:
    def start(seed: int) -> torch.Tensor:
        recipe = dataclasses.replace(recipe_of(seed=seed), baseline=BaselineConfig(kind="lora"))
        return new_model(recipe, load_training_data(recipe.data, seed=0), device="cpu").text_encoder.trained_weights()[
            0
        ]

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_static_tokens_take_a_set_from_each_task_of_the_data(baseline_recipe: Callable[..., Recipe]) -> None:
    """Rows with and without a negative are two data sets of one task, and share its set."""
    recipe = baseline_recipe("static")
    data = load_training_data(recipe.data, seed=0)
    assert len(data.tasks) == 3
    encoder = new_model(recipe, data, device="cpu").text_encoder
    assert encoder.baseline.instruction_variants == (PAIRS, LABELS, (DEFAULT,))
    assert encoder.vectors.shape[0] == 3


def test_documents_with_words_of_their_own_have_a_set_of_their_own(
    baseline_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    data = DataConfig(
        pairs=str(tmp_path / "pairs.jsonl"), instructions=("Find", "Look"), document_instructions=("Store",)
    )
    recipe = dataclasses.replace(baseline_recipe("static"), data=data)
    encoder = new_model(recipe, load_training_data(data, seed=0), device="cpu").text_encoder
    assert encoder.baseline.instruction_variants == (("Find", "Look"), ("Store",))
    assert encoder.config.default_instruction == "Store"  # texts without an instruction are documents


def test_wordings_of_the_recipe_go_before_those_of_the_data(baseline_recipe: Callable[..., Recipe]) -> None:
    recipe = baseline_recipe("static", changes={"instruction_variants": (("all of it", DEFAULT),)})
    encoder = new_model(recipe, load_training_data(recipe.data, seed=0), device="cpu").text_encoder
    assert encoder.baseline.instruction_variants == (("all of it", DEFAULT),)


def test_wordings_kept_from_training_have_no_place_in_a_set(
    baseline_recipe: Callable[..., Recipe], mixture: Path
) -> None:
    recipe = baseline_recipe("static", data=DataConfig(mixture=str(mixture), held_out_variants=1))
    encoder = new_model(recipe, load_training_data(recipe.data, seed=0), device="cpu").text_encoder
    assert encoder.baseline.instruction_variants == (PAIRS[:2], LABELS[:2], (DEFAULT,))


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "static"])
def test_a_run_moves_what_trains_and_saves_it(kind: str, baseline_recipe: Callable[..., Recipe]) -> None:
    recipe = baseline_recipe(kind, steps=3, log_every=1)
    data = load_training_data(recipe.data, seed=0)
    before = new_model(recipe, data, device="cpu").text_encoder.state_dict()
    model, result = run(recipe)
    encoder = model.text_encoder
    moved = {name for name, weight in encoder.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert result.trained_parameters == sum(weight.numel() for weight in encoder.trained_weights())
    assert [step for step, _ in losses_of(recipe)] == [1, 2, 3]
    texts = ["a red house", "the river is cold"]
    opened = load_encoder(str(result.output), device="cpu")
    for words in ("Find it", "an unseen instruction", None):
        np.testing.assert_array_equal(opened.model.encode(texts, prompt=words), model.encode(texts, prompt=words))


@pytest.mark.parametrize("kind", ["lora", "static"])
def test_a_killed_run_resumed_from_its_checkpoint_equals_the_uninterrupted_run(
    kind: str, baseline_recipe: Callable[..., Recipe]
) -> None:
    whole, cut = (baseline_recipe(kind, name, steps=3, save_every=2, log_every=1) for name in ("whole", "cut"))
    expected, _ = run(whole)
    with pytest.raises(_KilledError):
        run(cut, callbacks=[_KillAfter(3)])  # at the last step: it is lost and done again
    resumed, result = run(cut)
    assert result.resumed_from == 2
    pairs = zip(expected.text_encoder.trained_weights(), resumed.text_encoder.trained_weights(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert losses_of(cut) == losses_of(whole)


@pytest.mark.parametrize(
    ("kind", "by_end"),
    [
        (
            None,
            {"alignment": (".alignment.", ".deep."), "anchor": (".soft_prompt_delta", ".log_scale")},
        ),
        ("static", {"anchor": (".vectors",)}),
        ("lora", {}),
        ("full", {}),
    ],
)
def test_each_learning_rate_reaches_its_weights(
    kind: str | None, by_end: dict[str, tuple[str, ...]], baseline_recipe: Callable[..., Recipe]
) -> None:
    recipe = baseline_recipe(kind, steps=1)
    data, rates = load_training_data(recipe.data, seed=0), _Rates()
    model = new_model(recipe, data, device="cpu")
    with pytest.raises(_KilledError):
        train_model(model, data, recipe, callbacks=[rates])
    optim = recipe.optim
    special = {"alignment": optim.alignment_learning_rate, "anchor": optim.soft_prompt_learning_rate}
    for name, found in rates.found.items():
        groups = [group for group, parts in by_end.items() if any(part in f".{name}" for part in parts)]
        assert found == {special[groups[0]] if groups else optim.learning_rate}, name
    for parts in by_end.values():
        assert all(any(part in f".{name}" for name in rates.found) for part in parts)
    assert rates.found.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_frozen_baseline_is_refused_before_anything_is_written(baseline_recipe: Callable[..., Recipe]) -> None:
    recipe = baseline_recipe("lora")
    frozen = dataclasses.replace(recipe, baseline=dataclasses.replace(recipe.baseline, kind="frozen"))
    with pytest.raises(ConfigError, match="has nothing to train"):
        new_model(frozen, load_training_data(frozen.data, seed=0))
