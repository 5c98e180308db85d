"""A tiny model and a tiny mixture: training laws in seconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptembedder.backbone import RANDOM_MODELS, BackboneConfig
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.training import DataConfig, OptimConfig, Recipe, RunConfig

WORDS = ("red", "green", "blue", "cold", "warm", "fast", "slow", "old", "new", "round", "flat", "loud")
THINGS = ("house", "river", "car", "stone", "song", "road", "lamp", "door")

USUAL_MODELS = dict(RANDOM_MODELS)


@pytest.fixture(scope="module")
def usual_backbones() -> Iterator[None]:
    """Random weights as other processes have them: `lively_backbones` may have changed those of this one."""
    changed = dict(RANDOM_MODELS)
    RANDOM_MODELS.update(USUAL_MODELS)
    yield
    RANDOM_MODELS.update(changed)


@pytest.fixture(scope="session")
def tiny_model() -> ModelConfig:
    """Two families of different width, float32."""
    return ModelConfig(
        prompter=PrompterConfig(backbone=BackboneConfig(source="random:tiny-llama", dtype="float32"), lora_rank=4),
        reader=BackboneConfig(source="random:tiny-qwen3", dtype="float32"),
        num_soft_tokens=3,
        max_seq_length=48,
    )


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Two tasks: pairs of which some have a negative, and label data whose rows all have one."""
    return write_mixture(tmp_path)


def write_mixture(folder: Path) -> Path:
    rows = [(f"a {word} {thing}", f"the {thing} is {word}") for word in WORDS for thing in THINGS]
    pairs = [
        {"anchor": a, "positive": p} | ({"negative": "nothing"} if i % 3 == 0 else {}) for i, (a, p) in enumerate(rows)
    ]
    labels = [{"anchor": a, "positive": p, "negative": rows[-i][1]} for i, (a, p) in enumerate(rows[:40], start=1)]
    for name, content in (("pairs", pairs), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    task = {"instruction_paraphrases": ["Find it", "Which one is meant?"]}
    tasks = [
        {
            "name": "pairs",
            "file": "pairs.jsonl",
            "instruction": "Find the same thing",
            "document_instruction": None,
            "in_batch_negatives": True,
            **task,
        },
        {
            "name": "labels",
            "file": "labels.jsonl",
            "instruction": "Find the same kind",
            "document_instruction": "Find the same kind",
            "in_batch_negatives": False,
            **task,
        },
    ]
    path = folder / "mixture.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


@pytest.fixture
def recipe_of(tiny_model: ModelConfig, mixture: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe for the tiny mixture; the folder's name and the run settings vary."""

    def make(name: str = "run", *, steps: int = 6, data: DataConfig | None = None, **run: Any) -> Recipe:
        return Recipe(
            model=tiny_model,
            data=data or DataConfig(mixture=str(mixture)),
            optim=OptimConfig(steps=steps, batch_size=6, warmup_steps=2),
            run=RunConfig(output=str(tmp_path / name), **run),
        )

    return make
