"""Soft tokens that enter deeper layers too: nothing at first, exact later, and nowhere else."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional as F

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.backbone import Backbone, decoder_layers, prefill
from promptembedder.errors import ConfigError
from promptembedder.method import AlignmentConfig
from promptembedder.model import BaselineEmbedder

NewModel = Callable[..., PromptEmbedder]
NewBaseline = Callable[..., BaselineEmbedder]
SlowVectors = Callable[[PromptEmbedder, Sequence[str], str], Tensor]
INSTRUCTION = "find the same thing"
INSTRUCTIONS = [INSTRUCTION, "tell the mood", "name the language"]
EVERYWHERE: dict[str, Any] = {"deep_prompt_interval": 1}
NEW_WEIGHTS = {"0.deep.down", "0.deep.up", "0.deep.bias"}


def vectors(model: Any, texts: list[str], **changes: Any) -> np.ndarray:
    return model.encode(texts, **{"prompt": INSTRUCTION, **changes})


def gradients(model: PromptEmbedder, embedded: Tensor) -> dict[str, Tensor]:
    """Of one number of the vectors, by the trained weight's name."""
    model.zero_grad()
    weights = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(3))
    (weights * embedded).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# -- at the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"deep_prompt_interval": 1}, {"deep_prompt_interval": 2}])
def test_a_new_model_has_the_vectors_of_one_without_them(
    changes: dict[str, Any], new_config: Callable[..., ModelConfig], texts: list[str]
) -> None:
    one, other = (
        PromptEmbedder.create(config=new_config("tiny-gemma3", **{"deep_prompt_interval": 0, **some}), device="cpu")
        for some in (changes, {})
    )
    np.testing.assert_allclose(vectors(one, texts), vectors(other, texts), atol=1e-6)
    assert len(one.encoder.trained_weights()) > len(other.encoder.trained_weights())


@pytest.mark.parametrize(("every", "levels"), [(0, 1), (1, 3), (2, 2), (3, 1)])
def test_soft_tokens_are_as_wide_as_the_layers_that_they_enter(every: int, levels: int, new_model: NewModel) -> None:
    model = new_model("tiny-gemma3", deep_prompt_interval=every)
    assert model.soft_tokens(INSTRUCTION).shape == (5, levels * 48)


def test_a_prefix_is_refused(new_config: Callable[..., ModelConfig]) -> None:
    """The text comes after it, so its states would change with the instruction and could not be used again."""
    with pytest.raises(ConfigError, match="deep_prompt_interval needs placement 'suffix'"):
        new_config(placement="prefix", deep_prompt_interval=1)
    with pytest.raises(ConfigError, match="deep_prompt_interval must be at least 0, got -1"):
        new_config(deep_prompt_interval=-1)
    with pytest.raises(ConfigError, match="deep_prompt_rank must be at least 1, got 0. Try 64"):
        new_config(deep_prompt_rank=0)


# -- after training ----------------------------------------------------------------------------------------------------


def test_a_vector_is_that_of_one_plain_pass_with_the_additions_made_by_hand(
    family: str, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model(family, **EVERYWHERE)
    slow = slow_vectors(model, texts, INSTRUCTION).detach().numpy()
    np.testing.assert_allclose(vectors(model, texts), slow, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"deep_prompt_interval": 2},
        {"deep_prompt_interval": 1, "pooling": "last"},
        {"deep_prompt_interval": 1, "alignment": AlignmentConfig(kind="vocabulary")},
    ],
    ids=["every second", "last", "vocabulary"],
)
def test_so_is_it_in_other_settings(
    changes: dict[str, Any], new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model("tiny-qwen3", "tiny-gpt2", **changes)
    slow = slow_vectors(model, texts, INSTRUCTION).detach().numpy()
    np.testing.assert_allclose(vectors(model, texts), slow, atol=1e-5)


def test_conditioned_on_the_text_each_has_additions_of_its_own(new_model: NewModel, texts: list[str]) -> None:
    model = new_model("tiny-qwen3", "tiny-gpt2", with_text=True, **EVERYWHERE)
    alone = np.concatenate([vectors(model, [text]) for text in texts])
    np.testing.assert_allclose(vectors(model, texts), alone, atol=1e-5)


def test_gradients_are_those_of_one_plain_pass(
    family: str, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model(family, **EVERYWHERE).train()
    fast = gradients(model, model(model.preprocess(texts, prompt=INSTRUCTION))["sentence_embedding"])
    slow = gradients(model, slow_vectors(model, texts, INSTRUCTION))
    assert fast.keys() == slow.keys()
    assert fast.keys() >= NEW_WEIGHTS
    largest = max(float(gradient.abs().max()) for gradient in slow.values())
    for name, gradient in slow.items():
        assert float(gradient.abs().max()) > 0, name
        assert float((fast[name] - gradient).abs().max()) <= 1e-5 * largest, name


def test_a_step_moves_each_of_them_and_not_one_bit_of_the_reader(new_model: NewModel, texts: list[str]) -> None:
    model = new_model("tiny-gemma3", **EVERYWHERE).train()
    before = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    gradients(model, model(model.preprocess(texts, prompt=INSTRUCTION))["sentence_embedding"])
    optimiser.step()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved >= NEW_WEIGHTS
    assert not any(".reader." in name for name in moved)


@pytest.mark.parametrize("depth", [0, 1])
def test_each_deeper_alignment_counts(depth: int, new_model: NewModel, texts: list[str]) -> None:
    model = new_model("tiny-llama", **EVERYWHERE)
    before = vectors(model, texts)
    with torch.no_grad():
        model.encoder.deep.up[depth].zero_()
    assert np.abs(vectors(model, texts) - before).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2"])
def test_the_states_of_a_text_are_those_of_a_reader_that_never_saw_additions(
    name: str, new_model: NewModel, new_backbone: Callable[..., Backbone], texts: list[str]
) -> None:
    model = new_model(name, **EVERYWHERE)
    vectors(model, texts)
    features = model.preprocess(texts)
    found, fresh = (
        prefill(reader.decoder, features["input_ids"], features["attention_mask"])
        for reader in (model.encoder.reader, new_backbone(name))
    )
    for pair in zip((*found.keys, *found.values), (*fresh.keys, *fresh.values), strict=True):
        assert torch.equal(*pair)


# -- the same whatever the batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2"])
def test_a_text_has_the_same_vector_alone_and_in_any_batch(name: str, new_model: NewModel, texts: list[str]) -> None:
    model = new_model(name, **EVERYWHERE)
    alone = np.concatenate([vectors(model, [text]) for text in texts])
    for batch_size in (2, 6):
        np.testing.assert_allclose(vectors(model, texts, batch_size=batch_size), alone, atol=1e-5)
    np.testing.assert_allclose(vectors(model, texts[::-1])[::-1], alone, atol=1e-5)
    features = model.preprocess(texts, prompt=INSTRUCTION)
    for left, right in ((9, 0), (0, 9), (4, 5)):
        ids = F.pad(features["input_ids"], (left, right), value=33)
        mask = F.pad(features["attention_mask"], (left, right))
        with torch.no_grad():
            padded = model({**features, "input_ids": ids, "attention_mask": mask})["sentence_embedding"].numpy()
        np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2"])
def test_many_instructions_in_one_pass_give_what_each_gives_alone(
    name: str, new_model: NewModel, texts: list[str]
) -> None:
    model = new_model(name, **EVERYWHERE)
    alone = np.stack([vectors(model, texts, prompt=instruction) for instruction in INSTRUCTIONS])
    np.testing.assert_allclose(model.encode_instructions(texts, INSTRUCTIONS, batch_size=4), alone, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max(axis=1).min() > 1e-3


def test_columns_embedded_together_have_the_vectors_and_gradients_they_have_alone(
    new_model: NewModel, texts: list[str]
) -> None:
    model = new_model("tiny-gemma3", **EVERYWHERE).train()
    found = []
    for together in (True, False):
        rows = [(texts[:3], INSTRUCTION), (texts[3:], INSTRUCTIONS[1])]
        columns = [model.preprocess(some, prompt=instruction) for some, instruction in rows]
        if together:
            model.encoder.embed_columns(columns)
        found.append(gradients(model, torch.cat([model(column)["sentence_embedding"] for column in columns])))
    assert found[0].keys() == found[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[1].values())
    assert all(float((found[0][name] - found[1][name]).abs().max()) <= 1e-5 * largest for name in found[0])


# -- kept and carried --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
def test_compiled_tokens_are_the_generated_ones_at_their_whole_width(
    every: int, new_model: NewModel, texts: list[str], tmp_path: Path
) -> None:
    model = new_model("tiny-gemma3", deep_prompt_interval=every)
    generated = vectors(model, texts)
    model.compile_instructions([INSTRUCTION])
    assert model.encoder.parts().compiled[INSTRUCTION].shape == (5, (2 // every + 1) * 48)
    np.testing.assert_array_equal(vectors(model, texts), generated)
    model.save(str(tmp_path / "model"))
    light = PromptEmbedder.from_pretrained(tmp_path / "model", with_prompter=False, device="cpu")
    np.testing.assert_array_equal(vectors(light, texts), generated)
    np.testing.assert_allclose(light.encode_instructions(texts, [INSTRUCTION])[0], generated, atol=1e-5)


def test_two_models_over_one_reader_do_not_mix_their_additions_in_two_threads(
    new_baseline: NewBaseline, new_backbone: Callable[..., Backbone], texts: list[str]
) -> None:
    """Both are held at the reader's first layer until the other is there, each with its own additions at hand."""
    reader = new_backbone("tiny-qwen3")
    models = [new_baseline("static", reader=reader, model={"deep_prompt_interval": 1}) for _ in range(2)]
    with torch.no_grad():
        models[1].text_encoder.vectors.mul_(-2.0)
    alone = [vectors(model, texts, prompt=None) for model in models]
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
    meeting = threading.Barrier(2, timeout=20)
    decoder_layers(reader.decoder)[0].register_forward_pre_hook(lambda *_: (meeting.wait(), None)[1])
    found: dict[int, np.ndarray] = {}

    def encode(number: int) -> None:
        found[number] = vectors(models[number], texts, prompt=None)

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        np.testing.assert_allclose(found[number], alone[number], atol=1e-6)


def test_a_reader_that_served_a_deep_model_serves_a_plain_one_unchanged(
    new_baseline: NewBaseline, new_backbone: Callable[..., Backbone], texts: list[str]
) -> None:
    reader = new_backbone("tiny-gpt2")
    plain, deep = (new_baseline("static", reader=reader, model={"deep_prompt_interval": every}) for every in (0, 1))
    before = vectors(plain, texts, prompt=None)
    vectors(deep, texts, prompt=None)
    np.testing.assert_array_equal(vectors(plain, texts, prompt=None), before)


@pytest.mark.slow
def test_deeper_alignments_alone_learn_a_few_pairs_by_heart(new_config: Callable[..., ModelConfig]) -> None:
    model = PromptEmbedder.create(config=new_config(tuning="frozen"), device="cpu").train()
    assert model.encoder.deep is not None
    optimiser = torch.optim.Adam(model.encoder.deep.parameters(), lr=0.01)
    pairs = (["red house", "a song", "the cold river"], ["flat stone", "old lamp", "loud road"])
    loss, losses = MultipleNegativesRankingLoss(model), []
    for _ in range(30):
        columns = [model.preprocess(texts, prompt=INSTRUCTION) for texts in pairs]
        model.encoder.embed_columns(columns)
        value = loss(columns, None)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]
