"""A checkpoint is whole or passed over; what goes wrong stops a run before it spoils what is saved."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from promptembedder.errors import ConfigError, TrainingStoppedError
from promptembedder.model import PromptEmbedder
from promptembedder.training import MonitorConfig, Recipe, load_training_data, prepare_output, train_model
from promptembedder.training.monitor import DivergenceMonitor

pytestmark = pytest.mark.slow


class _Break(TrainerCallback):
    """Spoils what is trained, after so many steps."""

    def __init__(self, step: int, spoil: Callable[[Any], None]) -> None:
        self.step, self.spoil = step, spoil

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                self.spoil(model.encoder)


def _run(recipe: Recipe, *callbacks: TrainerCallback) -> None:
    checkpoint = prepare_output(recipe)
    model = PromptEmbedder.create(config=recipe.model, device="cpu", seed=recipe.run.seed)
    data = load_training_data(recipe.data, seed=recipe.run.seed)
    train_model(model, data, recipe, checkpoint=checkpoint, callbacks=callbacks)


@pytest.fixture
def checkpoints(recipe_of: Callable[..., Recipe]) -> tuple[Recipe, Path]:
    """A run with checkpoints of steps 1 and 2, and no finished model."""
    recipe = recipe_of(steps=2, save_every=1)
    _run(recipe)
    output = Path(recipe.run.output)
    (output / "promptembedder.json").unlink()
    return recipe, output


def test_a_checkpoint_that_is_not_whole_is_passed_over(
    checkpoints: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, output = checkpoints
    newest = output / "checkpoint-2"
    shutil.copytree(newest, tmp_path / "good")
    names = [path.name for path in newest.iterdir() if path.stat().st_size]
    for name in names:
        content = bytearray((newest / name).read_bytes())
        content[len(content) // 2] ^= 1
        for damage in (bytes(content), bytes(content[:-1]), None):
            (newest / name).unlink()
            if damage is not None:
                (newest / name).write_bytes(damage)
            caplog.clear()
            assert prepare_output(recipe) == output / "checkpoint-1", name
            assert re.search(r"skipping the incomplete checkpoint \S*checkpoint-2", caplog.text)
            shutil.copy(tmp_path / "good" / name, newest / name)
    assert prepare_output(recipe) == newest
    assert {"checkpoint.json", "training_state.json", "trainer_state.json", "prompter.safetensors"} <= set(names)


def test_checkpoints_hold_no_pickle_and_where_none_is_whole_nothing_is_begun_anew(
    checkpoints: tuple[Recipe, Path],
) -> None:
    recipe, output = checkpoints
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".md", ".yaml"}
    for seal in output.glob("checkpoint-*/checkpoint.json"):
        seal.unlink()
    with pytest.raises(ConfigError, match="contains only incomplete checkpoints"):
        prepare_output(recipe)
    assert prepare_output(recipe, overwrite=True) is None


def _set(value: float) -> Callable[[Any], None]:
    return lambda encoder: encoder.trained_weights()[0].fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_names_the_last_good_checkpoint(
    recipe_of: Callable[..., Recipe], value: float
) -> None:
    recipe = recipe_of(steps=4, save_every=1)
    with pytest.raises(TrainingStoppedError, match=r"stopped at step 3: the (loss|gradient's norm) is") as stopped:
        # the checkpoint of step 2 is written after this: it is the weights' turn to be refused then
        _run(dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, save_every=10)), _Break(2, _set(value)))
    assert "There is no checkpoint yet." in str(stopped.value)
    assert not (Path(recipe.run.output) / "promptembedder.json").exists()


def test_weights_that_are_not_finite_are_not_saved(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(steps=4, save_every=1)
    with pytest.raises(TrainingStoppedError, match=r"step 2: the weight .* is not finite.*good checkpoint is .*-1\. "):
        _run(recipe, _Break(2, _set(float("nan"))))
    assert [path.name for path in Path(recipe.run.output).glob("checkpoint-*")] == ["checkpoint-1"]


def test_soft_tokens_out_of_bounds_stop_a_run(recipe_of: Callable[..., Recipe]) -> None:
    monitor = MonitorConfig(patience=2, max_norm_ratio=1e-9, min_norm_ratio=0.0)
    with pytest.raises(
        TrainingStoppedError, match=r"step 2: soft_token_norm_ratio is .*, out of 0 to 1e-09 for 2 steps"
    ):
        _run(dataclasses.replace(recipe_of(steps=4, save_every=10), monitor=monitor))


def test_a_gradient_out_of_bounds_stops_after_the_patience_and_not_before() -> None:
    monitor = DivergenceMonitor(MonitorConfig(patience=3), check_entropy=True, last_good=lambda: Path("checkpoint-7"))
    for step, norm in enumerate([1e9, 1e9, 1.0, 1e9, 1e9], start=1):
        monitor.check_gradient(norm, step=step)
    with pytest.raises(TrainingStoppedError, match=re.escape("step 6: the gradient's norm is 1e+09")) as stopped:
        monitor.check_gradient(1e9, step=6)
    assert "The last good checkpoint is checkpoint-7." in str(stopped.value)
    DivergenceMonitor(
        MonitorConfig(bounds=False, patience=1), check_entropy=True, last_good=lambda: None
    ).check_gradient(1e9, step=1)


def test_collapsed_soft_tokens_stop_a_run_and_chosen_tokens_need_no_entropy() -> None:
    config = MonitorConfig(patience=1)
    monitor = DivergenceMonitor(config, check_entropy=True, last_good=lambda: None)
    for name, value in (
        ("soft_token_cosine", 1.0),
        ("soft_token_entropy", 0.0),
        ("soft_token_norm_ratio", float("nan")),
    ):
        with pytest.raises(TrainingStoppedError, match=f"step 5: {name} is"):
            monitor.check_soft_tokens({name: value}, step=5)
    DivergenceMonitor(config, check_entropy=False, last_good=lambda: None).check_soft_tokens(
        {"soft_token_entropy": 0.0}, step=5
    )
