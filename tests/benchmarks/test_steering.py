"""Laws of the steering benchmark: a constant prompter cannot steer, and the parts of an embedding add up to it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.steering.benchmark import constant_prompter, score_model, text_pooling_weight
from benchmarks.steering.report import steering_content, write_steering
from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.evaluation.aspects import Aspect, aspect_scores
from promptembedder.model import LoadedEncoder, load_encoder

TEXTS = tuple(f"{colour} {size} thing" for colour in ("red", "green") for size in ("large", "small"))


def aspect(attribute: str, triplet: list[int]) -> Aspect:
    return Aspect(
        corpus="things",
        attribute=attribute,
        kind="seen",
        texts=TEXTS,
        instruction=f"Group by {attribute}",
        unseen_wordings=(f"Which {attribute}?",),
        triplets=np.array([triplet]),
    )


ASPECTS = [aspect("colour", [0, 1, 2]), aspect("size", [0, 2, 1])]


@pytest.fixture
def loaded(new_config: Callable[..., ModelConfig], tmp_path: Path) -> LoadedEncoder:
    config = new_config(instruction_heads=2)
    model = PromptEmbedder.create(config=replace(config, prompter=replace(config.prompter, output="state")))
    with torch.no_grad():
        model.encoder.query.up.normal_(generator=torch.Generator().manual_seed(0))
    model.save(str(tmp_path / "model"))
    return load_encoder(str(tmp_path / "model"))


def test_under_a_constant_prompter_all_instructions_give_the_same_vectors(loaded: LoadedEncoder) -> None:
    instructions = [one.instruction for one in ASPECTS]
    constant = constant_prompter(loaded.model, instructions)
    first, second = (constant.encode(list(TEXTS), prompt=instruction) for instruction in instructions)
    assert np.array_equal(first, second)
    assert np.array_equal(constant.encode_instructions(list(TEXTS), instructions), np.stack([first, second]))
    whole = [loaded.model.encode(list(TEXTS), prompt=instruction) for instruction in instructions]
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_runs_are_the_whole_model_and_the_model_without_each_part(loaded: LoadedEncoder) -> None:
    runs = score_model(loaded, name="mine", aspects=ASPECTS, questions={})
    assert [run.variant for run in runs] == ["whole", "constant prompter", "soft tokens alone", "text states alone"]
    assert runs[0].aspects == aspect_scores(loaded.model, ASPECTS)
    constant = runs[1].aspects
    assert [score.own for score in constant] == [score.unseen_wording for score in constant]


def test_the_weight_of_the_text_states_is_restored(loaded: LoadedEncoder) -> None:
    encoder = loaded.model.text_encoder
    before = loaded.model.encode(list(TEXTS))
    with text_pooling_weight(encoder, 0.0):
        assert np.abs(loaded.model.encode(list(TEXTS)) - before).max() > 1e-3
    assert np.array_equal(loaded.model.encode(list(TEXTS)), before)


def test_the_pages_show_every_run(loaded: LoadedEncoder, tmp_path: Path) -> None:
    runs = score_model(loaded, name="mine", aspects=ASPECTS, questions={})
    facts = {"commands": ["python -m benchmarks steering mine"], "machine": {}, "versions": {}, "settings": {}}
    paths = write_steering(tmp_path / "results", steering_content(runs, facts))
    assert [path.name for path in paths] == ["steering.json", "steering.md", "steering.png"]
    assert [run["variant"] for run in json.loads(paths[0].read_text())["runs"]] == [run.variant for run in runs]
    assert all(run.variant in paths[1].read_text() for run in runs)
