"""A run's laws: killed and resumed it is the same run; only trained weights move; metrics are always written."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainerCallback

from promptembedder.backbone import TextCacheConfig
from promptembedder.errors import ConfigError
from promptembedder.method import ModelConfig
from promptembedder.model import BaselineConfig, PromptEmbedder
from promptembedder.storage import from_mapping, lock_directory, to_mapping
from promptembedder.training import (
    DataConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    TrainingResult,
    load_training_data,
    prepare_output,
    train_model,
)

from .conftest import write_mixture

pytestmark = pytest.mark.slow


class _KilledError(Exception):
    """Stands for a kill: the process does no more of its own."""


class _KillAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise _KilledError


def _run(recipe: Recipe, **arguments: Any) -> tuple[PromptEmbedder, TrainingResult]:
    checkpoint = prepare_output(recipe)
    model = PromptEmbedder.create(config=recipe.model, device="cpu", seed=recipe.run.seed)
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    return model, train_model(model, data, recipe, checkpoint=checkpoint, **arguments)


@dataclasses.dataclass(frozen=True)
class _FinishedRun:
    recipe: Recipe
    model: PromptEmbedder
    result: TrainingResult
    initial_learning_rates: dict[str, set[float]]


class _LearningRates(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, set[float]] = {}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, model: Any = None, **_: Any
    ) -> None:
        names = {id(weight): name for name, weight in model.named_parameters()}
        for group in optimizer.param_groups:
            for weight in group["params"]:
                self.found.setdefault(names[id(weight)], set()).add(group["initial_lr"])


@pytest.fixture(scope="module")
def finished(tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> _FinishedRun:
    """A run that is only looked at."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = Recipe(
        model=tiny_model,
        data=DataConfig(mixture=str(write_mixture(folder))),
        optim=OptimConfig(steps=6, batch_size=6, warmup_steps=2),
        run=RunConfig(output=str(folder / "run"), save_every=6, log_every=1),
    )
    rates = _LearningRates()
    model, result = _run(recipe, callbacks=[rates])
    return _FinishedRun(recipe, model, result, rates.found)


def _metrics(recipe: Recipe) -> list[dict[str, float]]:
    timing = ("seconds", "runtime", "per_second")
    lines = (Path(recipe.run.output) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not any(word in k for word in timing)} for line in lines]


def test_a_killed_run_resumed_from_its_checkpoint_equals_the_uninterrupted_run(
    recipe_of: Callable[..., Recipe],
) -> None:
    whole, cut = (recipe_of(name, steps=7, save_every=3, log_every=1) for name in ("whole", "cut"))
    expected, uninterrupted = _run(whole)
    with pytest.raises(_KilledError):
        _run(cut, callbacks=[_KillAfter(5)])  # two steps after the checkpoint: both are lost and done again
    resumed, result = _run(cut)
    assert result.resumed_from == 3
    for left, right in zip(expected.encoder.trained_weights(), resumed.encoder.trained_weights(), strict=True):
        assert torch.equal(left, right)
    train_lines = [line for line in _metrics(whole) if "loss" in line]
    assert len(train_lines) == 7
    assert _metrics(cut) == _metrics(whole)
    assert result.train_loss == uninterrupted.train_loss


@pytest.mark.parametrize("rows", [6, 48], ids=lambda rows: f"batches-of-{rows}")
def test_a_run_killed_after_its_last_step_tells_of_its_end_once(recipe_of: Callable[..., Recipe], rows: int) -> None:
    """The lines that follow the last checkpoint were written twice, and the mean loss was that of no step.

    The run ends within an epoch, or, with larger batches, with one.
    """

    class KillAtEnd(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise _KilledError

    runs = (recipe_of(name, steps=4, save_every=2, log_every=1) for name in ("whole", "cut"))
    whole, cut = (dataclasses.replace(run, optim=dataclasses.replace(run.optim, batch_size=rows)) for run in runs)
    _, uninterrupted = _run(whole)
    with pytest.raises(_KilledError):
        _run(cut, callbacks=[KillAtEnd()])
    (Path(cut.run.output) / "metrics.jsonl").unlink()  # as if the power had gone: the checkpoint knows the lines
    _, result = _run(cut)
    assert result.train_loss == uninterrupted.train_loss
    assert _metrics(cut) == _metrics(whole)


def test_a_noisy_relaxation_resumes_to_the_same_run_too(recipe_of: Callable[..., Recipe]) -> None:
    def noisy(name: str) -> Recipe:
        recipe = recipe_of(name, steps=5, save_every=2, log_every=1)
        relaxation = dataclasses.replace(recipe.model.relaxation, kind="gumbel")
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, relaxation=relaxation))

    expected, _ = _run(noisy("whole"))
    with pytest.raises(_KilledError):
        _run(noisy("cut"), callbacks=[_KillAfter(3)])
    resumed, _ = _run(noisy("cut"))
    for left, right in zip(expected.encoder.trained_weights(), resumed.encoder.trained_weights(), strict=True):
        assert torch.equal(left, right)


def test_training_moves_prompter_and_alignment_and_nothing_else(finished: _FinishedRun) -> None:
    before, after = PromptEmbedder.create(config=finished.recipe.model, device="cpu"), finished.model
    moved = {
        name for name, w in after.encoder.state_dict().items() if not torch.equal(w, before.encoder.state_dict()[name])
    }
    trained = {name for name, weight in after.encoder.named_parameters() if weight.requires_grad}
    assert moved == trained
    assert any("lora_A" in name for name in moved)
    assert "alignment.delta" in moved


def test_the_saved_model_gives_the_trained_models_vectors(finished: _FinishedRun) -> None:
    model, loaded = finished.model, PromptEmbedder.from_pretrained(finished.result.output, device="cpu")
    texts = ["a red house", "the river is cold"]
    assert (model.encode(texts, prompt="Find it") == loaded.encode(texts, prompt="Find it")).all()


def test_the_checkpoints_hold_no_backbone(finished: _FinishedRun) -> None:
    trained = sum(weight.numel() * weight.element_size() for weight in finished.model.encoder.trained_weights())
    checkpoint = Path(finished.recipe.run.output) / "checkpoint-6"
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors") if "state" not in path.name)
    assert weights > 0
    fixed_map = finished.model.encoder.alignment.base.numel() * 4
    assert weights < trained + fixed_map + 30_000  # names and shapes take some bytes too


def test_each_learning_rate_reaches_its_parameters(finished: _FinishedRun) -> None:
    optim = finished.recipe.optim
    for name, rates in finished.initial_learning_rates.items():
        if any(part in name for part in (".alignment.", ".deep.")):
            assert rates == {optim.alignment_learning_rate}, name
        elif "soft_prompt" in name or "log_scale" in name:
            assert rates == {optim.soft_prompt_learning_rate}, name
        else:
            assert rates == {optim.learning_rate}, name
    assert len(set.union(*finished.initial_learning_rates.values())) == 3


def test_metrics_hold_loss_and_the_soft_tokens_health(finished: _FinishedRun) -> None:
    line = next(line for line in _metrics(finished.recipe) if "loss" in line)
    assert {"soft_token_entropy", "soft_token_norm_ratio", "soft_token_cosine", "grad_norm", "step"} <= set(line)
    assert 0 < line["soft_token_entropy"] < 5.6  # nats; log(260) is the most there can be
    assert -1 <= line["soft_token_cosine"] <= 1


def test_held_out_rows_give_an_evaluation_loss(recipe_of: Callable[..., Recipe], mixture: Path) -> None:
    recipe = recipe_of(steps=2, data=DataConfig(mixture=str(mixture), tasks=("pairs",), held_out=12))
    _, result = _run(recipe)
    assert any(name.startswith("eval_") and name.endswith("loss") for name in result.metrics)


def test_a_finished_model_is_not_trained_over(finished: _FinishedRun) -> None:
    with pytest.raises(ConfigError, match="already contains a trained model"):
        prepare_output(finished.recipe)


def test_a_run_that_cannot_start_leaves_nothing(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of()
    prepare_output(recipe)
    assert not Path(recipe.run.output).exists()


def test_a_run_started_anew_is_not_resumed_from_the_older_ones_checkpoints(recipe_of: Callable[..., Recipe]) -> None:
    """The same recipe, overwritten and then killed, went on from the checkpoint of the run before."""
    recipe = recipe_of(steps=6, save_every=2)
    _run(recipe)
    assert prepare_output(recipe, overwrite=True) is None
    with pytest.raises(_KilledError):
        model = PromptEmbedder.create(config=recipe.model, device="cpu")
        train_model(model, load_training_data(recipe.data, seed=0), recipe, callbacks=[_KillAfter(3)])
    (Path(recipe.run.output) / "promptembedder.json").unlink()
    checkpoint = prepare_output(recipe)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"


def test_checkpoints_of_another_recipe_are_not_continued(recipe_of: Callable[..., Recipe]) -> None:
    with pytest.raises(_KilledError):
        _run(recipe_of(steps=3, save_every=1), callbacks=[_KillAfter(2)])
    with pytest.raises(ConfigError, match="another recipe"):
        prepare_output(recipe_of(steps=4, save_every=1))


def test_a_run_that_was_begun_before_a_setting_existed_goes_on(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(steps=3, save_every=1)
    with pytest.raises(_KilledError):
        _run(recipe, callbacks=[_KillAfter(2)])
    path = Path(recipe.run.output) / "recipe.yaml"
    written = yaml.safe_load(path.read_text())
    del written["run"]["check_ranks"]
    path.write_text(yaml.safe_dump(written))
    assert prepare_output(recipe) is not None


def test_a_recipe_survives_its_mapping(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of()
    assert from_mapping(Recipe, json.loads(json.dumps(to_mapping(recipe)))) == recipe


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"optim": {"stepz": 3}}, "unknown setting 'optim.stepz'.*'steps'"),
        ({"model": {"num_soft_tokens": 0}}, "num_soft_tokens must be at least 1, got 0"),
        ({"loss": {"temperature": 0}}, "loss.temperature must be > 0, got 0"),
        ({"model": {"relaxation": {"temperature": -1.0}}}, "logit temperature must be > 0, got -1.0"),
        ({"optim": {"steps": "many"}}, "optim.steps must be of type int, got 'many'"),
        ({"optim": {"schedule": "cosine"}}, "unknown optim.schedule 'cosine'"),
        ({"data": {"mixture": "a", "pairs": "b"}}, "several sources: mixture, pairs"),
    ],
)
def test_a_bad_recipe_is_refused_by_name_value_and_mend(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Recipe, mapping)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_kept_text_states_give_the_same_run_and_no_second_reading(
    recipe_of: Callable[..., Recipe], mixture: Path, tmp_path: Path, where: str
) -> None:
    recipe = recipe_of(steps=9, data=DataConfig(mixture=str(mixture), limit=12), log_every=1)
    _run(recipe)
    states = TextCacheConfig(memory_gib=1.0)
    if where == "disk":
        states = TextCacheConfig(disk_gib=0.1, folder=str(tmp_path / "states"))
    run = dataclasses.replace(recipe.run, output=str(tmp_path / "kept"))
    kept = dataclasses.replace(recipe, run=run, text_cache=states)
    model, _ = _run(kept)
    assert model.encoder.text_cache is None  # training alone asks for texts again
    losses = [[row["loss"] for row in _metrics(each) if "loss" in row] for each in (recipe, kept)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    held = [row["texts_held"] for row in _metrics(kept) if "texts_held" in row]
    assert held[0] == 0
    assert held[-1] == 1


def test_a_store_that_is_refused_costs_no_checkpoint(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(steps=2, save_every=1)
    _run(recipe)
    states = TextCacheConfig(disk_gib=1e9, folder=str(tmp_path / "states"))
    model = PromptEmbedder.create(config=recipe.model, device="cpu")
    data = load_training_data(recipe.data, seed=0)
    with pytest.raises(ConfigError, match="GiB free"):
        train_model(model, data, dataclasses.replace(recipe, text_cache=states))
    assert {path.name for path in Path(recipe.run.output).glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_kept_text_states_are_for_readers_that_nothing_trains(tiny_model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="text_cache needs text states that training does not change"):
        Recipe(model=tiny_model, baseline=BaselineConfig(kind="lora"), text_cache=TextCacheConfig(memory_gib=1.0))


def test_two_trainings_do_not_share_a_folder(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(steps=2)
    with (
        lock_directory(Path(recipe.run.output)),
        pytest.raises(ConfigError, match="is in use by process .* choose another output"),
    ):
        _run(recipe)
    _run(recipe)
