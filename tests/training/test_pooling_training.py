"""Training of the instruction pooling alone: the same texts are near under one instruction and far under another."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.errors import ConfigError
from promptembedder.evaluation.aspects import triplet_accuracy
from promptembedder.training import (
    DataConfig,
    InstructionPoolingConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    load_training_data,
    train_model,
)
from promptembedder.training import new_model as build_model
from promptembedder.training.instruction_pooling import train_instruction_pooling

COLOURS, THINGS = ("red", "green", "blue"), ("house", "river", "car")
INSTRUCTIONS = {"colour": "Group by colour", "thing": "Which thing?"}


@pytest.fixture
def data_config(tmp_path: Path) -> DataConfig:
    rows = [
        {"text": f"a {colour} {thing}, number {number}", "labels": {"colour": colour, "thing": thing}}
        for number in range(6)
        for colour in COLOURS
        for thing in THINGS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    attributes = {name: {"instructions": [instruction]} for name, instruction in INSTRUCTIONS.items()}
    path = tmp_path / "corpora.json"
    path.write_text(json.dumps([{"name": "things", "file": "rows.jsonl", "attributes": attributes}]))
    return DataConfig(corpora=str(path))


@pytest.fixture
def config(new_config: Callable[..., ModelConfig]) -> ModelConfig:
    config = new_config(instruction_heads=2, text_pooling_layer=1)
    return replace(config, prompter=replace(config.prompter, output="state"))


def fit(model: PromptEmbedder, data_config: DataConfig, steps: int) -> float:
    data = load_training_data(data_config, seed=0)
    settings = InstructionPoolingConfig(steps=steps, batch_size=32, learning_rate=0.005)
    return train_instruction_pooling(model, data, settings, temperature=0.1, attributes_per_step=2, seed=0)


def test_trained_pooling_answers_conflict_triplets_of_new_texts(config: ModelConfig, data_config: DataConfig) -> None:
    model = PromptEmbedder.create(config=config)
    texts = [f"a {colour} {thing}, number 9" for colour in COLOURS for thing in THINGS]
    model.encoder.fit_whitening([f"a {colour} {thing}" for colour in COLOURS for thing in THINGS])
    fit(model, data_config, 300)
    model.encoder.text_pooling.weight.fill_(1e4)
    same_colour = [[0, 1, 3], [4, 5, 7], [8, 6, 2]]  # anchor, same colour, same thing
    rows = torch.tensor(same_colour).numpy()
    by_colour, by_thing = model.encode_instructions(texts, list(INSTRUCTIONS.values()))
    assert triplet_accuracy(by_colour, rows) == 100
    assert triplet_accuracy(by_thing, rows) == 0


def test_only_queries_and_pooling_change(config: ModelConfig, data_config: DataConfig) -> None:
    model = PromptEmbedder.create(config=config)
    before = {name: weight.detach().clone() for name, weight in model.encoder.named_parameters()}
    fit(model, data_config, 3)
    changed = {name for name, weight in model.encoder.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.startswith(("query.", "text_pooling.instructed.")) for name in changed)


def test_the_same_seed_gives_the_same_queries(config: ModelConfig, data_config: DataConfig) -> None:
    queries = []
    for _ in range(2):
        model = PromptEmbedder.create(config=config)
        fit(model, data_config, 3)
        queries.append(model.encoder.query.up.detach())
    assert torch.equal(*queries)


def test_a_recipe_trains_the_pooling_before_the_other_parts(
    config: ModelConfig, data_config: DataConfig, tmp_path: Path
) -> None:
    recipe = Recipe(
        model=config,
        data=data_config,
        instruction_pooling=InstructionPoolingConfig(steps=5),
        optim=OptimConfig(steps=1, batch_size=6, alignment_learning_rate=1e-12),
        run=RunConfig(output=str(tmp_path / "run")),
    )
    data = load_training_data(data_config, seed=0)
    model = build_model(recipe, data, device="cpu")
    before = model.encoder.query.up.detach().clone()
    train_model(model, data, recipe)
    assert (model.encoder.query.up - before).abs().max() > 1e-4


def test_a_model_without_heads_is_refused(config: ModelConfig, data_config: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"needs model.instruction_heads"):
        fit(PromptEmbedder.create(config=replace(config, instruction_heads=0)), data_config, 1)


def test_pairs_with_an_instruction_each_teach_which_answer_is_asked_for(config: ModelConfig, tmp_path: Path) -> None:
    def row(colour: str, thing: str, number: int, asked: str) -> dict[str, str]:
        answer = colour if asked == "colour" else thing
        return {"text": f"a {colour} {thing}, number {number}", "question": INSTRUCTIONS[asked], "answer": answer}

    rows = [
        row(colour, thing, number, asked)
        for number in range(6)
        for colour in COLOURS
        for thing in THINGS
        for asked in INSTRUCTIONS
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    data_config = DataConfig(pairs=str(path), columns=("text", "answer"), instruction_column="question")
    model = PromptEmbedder.create(config=config)
    model.encoder.fit_whitening([one["text"] for one in rows] + list(COLOURS + THINGS))
    fit(model, data_config, 300)
    model.encoder.text_pooling.weight.fill_(1e4)
    answers = torch.as_tensor(model.encode(list(COLOURS + THINGS)))
    texts = [f"a {colour} {thing}, number 9" for colour in COLOURS for thing in THINGS]
    by_colour, by_thing = torch.as_tensor(model.encode_instructions(texts, list(INSTRUCTIONS.values()))) @ answers.T
    assert by_colour.argmax(dim=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert by_thing.argmax(dim=1).tolist() == [3, 4, 5, 3, 4, 5, 3, 4, 5]
