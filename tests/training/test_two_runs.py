"""Laws of the folder lock: a second process that trains into the folder is refused with the name of the first."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from promptembedder.errors import ConfigError
from promptembedder.training import Recipe, load_training_data, new_model, prepare_output, train_model

pytestmark = pytest.mark.integration

# as a training process holds it, without the seconds that importing torch takes
HOLD = """
import sys
from pathlib import Path
from promptembedder.storage import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class _StoppedError(Exception):
    """Stands for the end of the process."""


class _StopAfterCheckpoint(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise _StoppedError


def test_training_in_a_locked_folder_is_refused_and_resumes_once_the_owner_is_killed(
    recipe_of: Callable[..., Recipe],
) -> None:
    recipe = recipe_of(steps=3, save_every=1)
    output = Path(recipe.run.output)
    data = load_training_data(recipe.data, seed=0)

    def train(*callbacks: TrainerCallback) -> None:
        checkpoint = prepare_output(recipe)
        train_model(new_model(recipe, data, device="cpu"), data, recipe, callbacks=callbacks, checkpoint=checkpoint)

    with pytest.raises(_StoppedError):
        train(_StopAfterCheckpoint())
    before = sorted(output.glob("checkpoint-*"))
    assert before
    words = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=rf"is in use by process {owner.pid} on .*choose another output"):
                train()
            assert sorted(output.glob("checkpoint-*")) == before
        finally:
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait()
    assert prepare_output(recipe) == before[-1]
