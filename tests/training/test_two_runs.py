"""Laws of the folder lock: a second process that trains into the folder is refused with the name of the first."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from promptembedder.errors import ConfigError
from promptembedder.storage import to_mapping
from promptembedder.training import Recipe, load_training_data, new_model, prepare_output, train_model


def test_a_second_training_is_refused_with_the_first_ones_name_and_goes_on_once_that_is_killed(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(steps=100_000, save_every=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_mapping(recipe)), encoding="utf-8")
    words = [sys.executable, "-m", "promptembedder", "train", str(tmp_path / "recipe.yaml")]
    output = Path(recipe.run.output)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            until = time.monotonic() + 120
            while not list(output.glob("checkpoint-*")):
                assert first.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            data = load_training_data(recipe.data, seed=0)
            before = sorted(output.glob("checkpoint-*"))
            with pytest.raises(ConfigError, match=rf"is in use by process {first.pid} on .*choose another output"):
                train_model(new_model(recipe, data, device="cpu"), data, recipe, checkpoint=prepare_output(recipe))
            assert first.poll() is None
            assert before  # the first one's checkpoints were not cleared away: it goes on writing newer ones
        finally:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
    assert prepare_output(recipe) is not None
