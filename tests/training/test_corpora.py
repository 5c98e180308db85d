"""Laws of training on labelled corpora: one prefill for several instructions, a loss that only steering can lower."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.errors import ConfigError
from promptembedder.method import REFERENCE_INSTRUCTIONS
from promptembedder.training import (
    DataConfig,
    InstructionContrastiveLoss,
    OptimConfig,
    Recipe,
    RunConfig,
    load_training_data,
    new_model,
    train_model,
)
from promptembedder.training.data import InstructionCollator

COLOURS, THINGS = ("red", "green", "blue"), ("house", "river", "car")


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    rows = [
        {"text": f"a {colour} {thing}, number {number}", "labels": {"colour": colour, "thing": thing}}
        for number in range(3)
        for colour in COLOURS
        for thing in THINGS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    attributes = {name: {"instructions": [f"Group by {name}", f"Which {name}?"]} for name in ("colour", "thing")}
    path = tmp_path / "corpora.json"
    path.write_text(json.dumps([{"name": "things", "file": "rows.jsonl", "attributes": attributes}]))
    return path


def slow_loss(vectors: torch.Tensor, labels: list[int], temperature: float) -> float:
    """The formula, anchor by anchor."""
    unit = F.normalize(vectors, dim=-1)
    known = [row for row, label in enumerate(labels) if label >= 0]
    terms = []
    for anchor in known:
        others = [row for row in known if row != anchor]
        positives = [row for row in others if labels[row] == labels[anchor]]
        if not positives or len(positives) == len(others):
            continue
        shares = torch.stack([unit[anchor] @ unit[row] / temperature for row in others]).log_softmax(dim=0)
        terms.append(-torch.stack([shares[others.index(row)] for row in positives]).mean())
    return float(torch.stack(terms).mean())


def test_loss_equals_the_formula_anchor_by_anchor(new_model) -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(7, 5, generator=generator) for _ in range(2)]
    labels = torch.tensor([[0, 1], [0, 0], [1, -1], [1, 1], [2, 0], [-1, 0], [0, 1]])
    loss = InstructionContrastiveLoss(new_model("tiny-llama"), temperature=0.1)
    found = loss([{"sentence_embedding": vectors} for vectors in views], labels)
    expected = [slow_loss(vectors, labels[:, column].tolist(), 0.1) for column, vectors in enumerate(views)]
    assert float(found.detach()) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_labels_without_contrast_give_a_loss_of_zero_with_a_gradient(new_model) -> None:
    vectors = torch.randn(3, 4, requires_grad=True)
    loss = InstructionContrastiveLoss(new_model("tiny-llama"), temperature=0.1)
    found = loss([{"sentence_embedding": vectors}], torch.tensor([[0], [1], [2]]))
    found.backward()
    assert float(found.detach()) == 0
    assert vectors.grad is not None


def test_each_text_of_a_batch_is_collated_once_for_each_instruction(corpora: Path, new_model) -> None:
    model = new_model("tiny-llama")
    data = load_training_data(DataConfig(corpora=str(corpora)), seed=0)
    corpus = data.tasks["things"].corpus
    collator = InstructionCollator(preprocess_fn=model.preprocess, corpora={"things": corpus})
    rows = [{**data.train["things"][row], "dataset_name": "things"} for row in range(6)]
    batch = collator(rows)
    texts = list(dict.fromkeys(row[column] for row in rows for column in ("anchor", "positive")))
    views = [name for name in batch if name.endswith("_input_ids")]
    assert len(views) == 2
    assert all(len(batch[view]) == len(texts) for view in views)
    instructions = [batch[view.replace("input_ids", "instruction")] for view in views]
    assert {any(word in one for word in ("colour", "thing")) for one in instructions} == {True}
    by_text = corpus.labels_by_text()
    assert batch["label"].tolist() == [list(by_text[text]) for text in texts]


def test_held_out_variants_are_unseen_in_training(corpora: Path) -> None:
    data = load_training_data(DataConfig(corpora=str(corpora), held_out_variants=1), seed=0)
    task = data.tasks["things"]
    assert task.instructions == ("Group by colour", "Group by thing")
    assert task.unseen_instructions == ("Which colour?", "Which thing?")
    with pytest.raises(ConfigError, match="none is left to train on"):
        load_training_data(DataConfig(corpora=str(corpora), held_out_variants=2), seed=0)


def test_the_saved_statistics_are_those_of_the_trained_prompter(
    corpora: Path, new_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    config = new_config(instruction_heads=2)
    recipe = Recipe(
        model=replace(config, prompter=replace(config.prompter, output="state")),
        data=DataConfig(corpora=str(corpora)),
        optim=OptimConfig(steps=3, batch_size=6, learning_rate=0.1),
        run=RunConfig(output=str(tmp_path / "run"), save_every=2),
    )
    data = load_training_data(recipe.data, seed=0)
    model = new_model(recipe, data, device="cpu")
    before = model.text_encoder.prompter.state_mean.clone()
    train_model(model, data, recipe)
    for folder in ("run", "run/checkpoint-2"):
        encoder = PromptEmbedder.from_pretrained(str(tmp_path / folder), device="cpu").encoder
        rows = encoder.generate_relaxed(list(REFERENCE_INSTRUCTIONS))
        spoken = torch.cat([row.instructed for row in rows])
        torch.testing.assert_close(spoken.mean(dim=0), torch.zeros_like(spoken[0]), atol=1e-4, rtol=0)
        assert not torch.allclose(encoder.prompter.state_mean, before)
