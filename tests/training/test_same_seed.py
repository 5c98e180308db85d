"""The same seed gives the same model, whichever process trains it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from promptembedder import PromptEmbedder
from promptembedder.storage import read_manifest, to_mapping
from promptembedder.training import Recipe, load_training_data, new_model, prepare_output, train_model

pytestmark = pytest.mark.integration


def _curve(recipe: Recipe) -> list[float]:
    lines = (Path(recipe.run.output) / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def _in_another_process(*words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "12345", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("usual_backbones")
def test_two_processes_with_one_seed_train_and_encode_bit_for_bit_alike(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Other process, other hash seed; the order of a set, or an unseeded draw, would show in every number."""
    torch.set_num_threads(1)
    here, there = (recipe_of(name, steps=4, log_every=1) for name in ("here", "there"))
    prepare_output(here)
    data = load_training_data(here.data, seed=here.run.seed)
    model = new_model(here, data, device="cpu")
    assert isinstance(model, PromptEmbedder)
    train_model(model, data, here)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_mapping(there)), encoding="utf-8")
    _in_another_process("-m", "promptembedder", "train", str(tmp_path / "recipe.yaml"))
    assert len(_curve(here)) == 4
    assert _curve(there) == _curve(here)
    files = read_manifest(Path(here.run.output)).files  # hashes of the weights, and of a sentence's vector
    assert "self_test.json" in files
    assert read_manifest(Path(there.run.output)).files == files
