"""Tiny model, data and recipe for fault injection."""

import json
from pathlib import Path

import torch

from promptembedder.backbone import BackboneConfig
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.model import PromptEmbedder
from promptembedder.training import DataConfig, OptimConfig, Recipe, RunConfig

__all__ = ["TEXTS", "tiny_config", "tiny_embedder", "tiny_recipe", "write_pairs"]

TEXTS = ("a red house", "the river is cold", "", "def add(a, b): return a + b")

_MOVED = 0.02
_COLOURS = ("red", "green", "blue", "cold", "warm", "fast", "slow", "old", "new", "round")
_THINGS = ("house", "river", "car", "stone", "song", "road", "lamp", "door")


def tiny_config() -> ModelConfig:
    """Return a configuration with random float32 weights for prompter and reader."""
    backbone = BackboneConfig(source="random:tiny-llama", dtype="float32", layers=2)
    return ModelConfig(
        prompter=PrompterConfig(backbone=backbone, lora_rank=4, lora_alpha=8),
        reader=backbone,
        num_soft_tokens=3,
        max_seq_length=48,
    )


def tiny_embedder(*, seed: int = 0) -> PromptEmbedder:
    """Build a model of `tiny_config` that is ready to embed. Random offsets make its trained weights distinct."""
    model = PromptEmbedder.create(config=tiny_config(), device="cpu", seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.encoder.trained_weights():
            weight.add_(_MOVED * torch.randn(weight.shape, generator=draw))
    return model.eval()


def write_pairs(path: Path) -> Path:
    """Write training rows: enough for batches without duplicates, few enough for several epochs a second."""
    rows = [
        {"anchor": f"a {colour} {thing}", "positive": f"the {thing} is {colour}"}
        for colour in _COLOURS
        for thing in _THINGS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_recipe(pairs: Path, output: Path, *, steps: int, save_every: int, log_every: int) -> Recipe:
    """Return the recipe of a run that trains `tiny_config` on the file of `write_pairs`."""
    return Recipe(
        model=tiny_config(),
        data=DataConfig(pairs=str(pairs), instructions=("Find the same thing", "Which one is meant?")),
        optim=OptimConfig(steps=steps, batch_size=8, warmup_steps=2),
        run=RunConfig(output=str(output), save_every=save_every, log_every=log_every),
    )
