"""Free vectors for each task in the place of generated ones: one set for all wordings of a task, and for no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional as F

from promptembedder.backbone import Backbone
from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import BaselineEmbedder, StaticEncoder

pytestmark = pytest.mark.slow

NewBaseline = Callable[..., BaselineEmbedder]
SlowVector = Callable[[SoftTokenEncoder, str, Tensor], Tensor]
FIND, MOOD = ("find the answer", "look it up"), ("tell the mood", "how does it feel?", "name the feeling")
TASKS = (FIND, MOOD)
DEFAULT = "Represent the text for retrieval"
UNSEEN = "name feelings"
FALLBACKS = ("nearest", "default", "shared")


@pytest.fixture
def model(new_baseline: NewBaseline) -> BaselineEmbedder:
    return new_baseline("static", "tiny-gemma3", instruction_variants=TASKS)


def encoder_of(model: BaselineEmbedder) -> StaticEncoder:
    encoder = model.text_encoder
    assert isinstance(encoder, StaticEncoder)
    return encoder


def gradients(model: BaselineEmbedder, embedded: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(3))
    (weights * embedded).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# -- the vectors -------------------------------------------------------------------------------------------------------


def test_each_set_starts_as_the_words_of_the_anchor(new_baseline: NewBaseline, family: str) -> None:
    model = new_baseline("static", family, model={"deep_prompt_interval": 1}, instruction_variants=TASKS, moved=False)
    encoder, reader = encoder_of(model), encoder_of(model).reader
    ids = reader.tokenizer.tokenize([encoder.config.prompter.init_text], max_length=99).ids[0, -5:]
    with torch.no_grad():
        words = reader.model.get_input_embeddings()(ids)
    for one in encoder.vectors:
        torch.testing.assert_close(one[:, : reader.dim], words, atol=1e-5, rtol=1e-5)
        assert not one[:, reader.dim :].any()


def test_the_default_instruction_has_a_set_of_its_own_unless_a_task_names_it(new_baseline: NewBaseline) -> None:
    own, named = (
        encoder_of(new_baseline("static", instruction_variants=wordings))
        for wordings in (TASKS, (*TASKS, (DEFAULT, "in short")))
    )
    assert own.vectors.shape == named.vectors.shape == (3, 5, 3 * 32)
    assert own.set_of(DEFAULT) == 2
    assert own.set_of(DEFAULT) not in {own.set_of(wording) for task in TASKS for wording in task}
    assert named.set_of(DEFAULT) == named.set_of("in short")


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_without_an_instruction_the_default_one_stands_in(prompt: str | None, model: BaselineEmbedder) -> None:
    np.testing.assert_array_equal(model.encode(["a text"], prompt=prompt), model.encode(["a text"], prompt=DEFAULT))
    assert np.abs(model.encode(["a text"], prompt=FIND[0]) - model.encode(["a text"])).max() > 1e-3


@pytest.mark.parametrize("changes", [{"deep_prompt_interval": 0}, {"deep_prompt_interval": 2, "pooling": "last"}])
def test_a_vector_is_that_of_one_plain_pass_over_text_and_vectors(
    changes: dict[str, Any], family: str, new_baseline: NewBaseline, slow_vector: SlowVector, texts: list[str]
) -> None:
    model = new_baseline("static", family, model=changes, instruction_variants=TASKS)
    encoder = encoder_of(model)
    for number, task in enumerate(TASKS):
        slow = torch.stack([slow_vector(encoder, text, encoder.vectors[number]) for text in texts]).detach().numpy()
        for wording in task:
            np.testing.assert_allclose(model.encode(texts, prompt=wording), slow, atol=1e-5)


def test_gradients_are_those_of_one_plain_pass(
    new_baseline: NewBaseline, slow_vector: SlowVector, texts: list[str]
) -> None:
    model = new_baseline("static", "tiny-gemma3", model={"deep_prompt_interval": 1}, instruction_variants=TASKS).train()
    encoder = encoder_of(model)
    fast = gradients(model, model(model.preprocess(texts, prompt=MOOD[1]))["sentence_embedding"])
    slow = gradients(model, torch.stack([slow_vector(encoder, text, encoder.vectors[1]) for text in texts]))
    assert fast.keys() == slow.keys() == {"0.vectors"}
    for name, gradient in slow.items():
        torch.testing.assert_close(fast[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)


def test_the_gradient_reaches_the_batchs_tasks_and_no_other(new_baseline: NewBaseline) -> None:
    model = new_baseline("static", instruction_variants=(*TASKS, ("count the verbs",))).train()
    columns = [model.preprocess(["a", "bb"], prompt=prompt) for prompt in (MOOD[2], None)]
    encoder_of(model).embed_columns(columns)
    found = gradients(model, torch.cat([column["sentence_embedding"] for column in columns]))
    reached = found["0.vectors"].abs().amax(dim=(1, 2)) > 0
    assert reached.tolist() == [False, True, False, True]  # find, mood, count, default


def test_a_text_has_the_same_vector_alone_and_in_any_batch(model: BaselineEmbedder, texts: list[str]) -> None:
    alone = np.concatenate([model.encode([text], prompt=FIND[0]) for text in texts])
    np.testing.assert_allclose(model.encode(texts, prompt=FIND[0]), alone, atol=1e-5)
    np.testing.assert_allclose(model.encode(texts[::-1], prompt=FIND[0])[::-1], alone, atol=1e-5)
    features = model.preprocess(texts, prompt=FIND[0])
    for left, right in ((9, 0), (0, 9)):
        ids = F.pad(features["input_ids"], (left, right), value=33)
        mask = F.pad(features["attention_mask"], (left, right))
        with torch.no_grad():
            padded = model({**features, "input_ids": ids, "attention_mask": mask})["sentence_embedding"].numpy()
        np.testing.assert_allclose(padded, alone, atol=1e-5)


# -- which set ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", ["nearest", "default"])
def test_every_wording_of_a_task_has_the_tasks_set(fallback: str, new_baseline: NewBaseline) -> None:
    encoder = encoder_of(new_baseline("static", instruction_variants=TASKS, fallback=fallback))
    for number, task in enumerate(TASKS):
        assert {encoder.set_of(wording) for wording in task} == {number}


def test_a_wording_with_blanks_around_it_is_the_wording(new_baseline: NewBaseline) -> None:
    """An instruction is stripped before it is looked up; wordings were kept as the data had them, and never found."""
    model = new_baseline(
        "static", instruction_variants=((" find the answer\n", "half an emoji \ud83d"), MOOD), fallback="default"
    )
    features = [model.preprocess(["a"], prompt=prompt) for prompt in (" find the answer\n", "half an emoji \ud83d")]
    assert [encoder_of(model).set_of(one["instruction"]) for one in features] == [0, 0]
    assert encoder_of(model).set_of("find the answer") == 0


def test_an_unseen_instruction_has_the_vectors_of_the_wording_most_like_it(
    family: str, new_baseline: NewBaseline, texts: list[str]
) -> None:
    model = new_baseline("static", family, instruction_variants=TASKS)
    encoder = encoder_of(model)
    seen = [*FIND, *MOOD, DEFAULT]
    states = []
    for words in (UNSEEN, *seen):  # the plain reference: each alone
        ids = encoder.reader.tokenizer.tokenize([words], max_length=99).ids
        with torch.no_grad():
            states.append(encoder.reader.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, 1:].mean(dim=0))
    unit = torch.stack([state / state.norm() for state in states])
    centred = unit - unit.mean(dim=0)
    cosines = [float(centred[0] @ each / each.norm()) for each in centred[1:]]
    expected = seen[int(np.argmax(cosines))]
    assert encoder.nearest(UNSEEN) == expected
    np.testing.assert_array_equal(model.encode(texts, prompt=UNSEEN), model.encode(texts, prompt=expected))


def test_the_wording_most_like_a_seen_one_is_itself(model: BaselineEmbedder) -> None:
    encoder = encoder_of(model)
    for words in (*FIND, *MOOD, DEFAULT):
        assert encoder.nearest(words) == words


def test_the_nearest_wording_is_the_same_each_time_and_whatever_was_trained(new_baseline: NewBaseline) -> None:
    asked = [UNSEEN, "", "a", "find an answer", "übergroß 🙂", "<|end|>", "word " * 300]
    models = [new_baseline("static", instruction_variants=TASKS, moved=moved) for moved in (True, False)]
    found = [[encoder_of(model).nearest(words) for words in asked] for model in (*models, models[0])]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 1


def test_wordings_longer_than_the_readers_positions_can_be_compared(new_baseline: NewBaseline) -> None:
    """The reader was given 256 tokens of them, where GPT-2's table of positions may be shorter."""
    long = "find " * 60
    model = new_baseline("static", "tiny-gpt2", instruction_variants=(*TASKS, (long,)))
    assert encoder_of(model).nearest(long.strip() + " it") == long.strip()


def test_by_default_an_unseen_instruction_has_the_default_ones_vectors(
    new_baseline: NewBaseline, texts: list[str]
) -> None:
    model = new_baseline("static", instruction_variants=TASKS, fallback="default")
    np.testing.assert_array_equal(model.encode(texts, prompt=UNSEEN), model.encode(texts))


def test_a_shared_set_serves_every_instruction(new_baseline: NewBaseline, texts: list[str]) -> None:
    model = new_baseline("static", instruction_variants=TASKS, fallback="shared")
    assert encoder_of(model).vectors.shape == (1, 5, 3 * 32)
    vectors = [model.encode(texts, prompt=prompt) for prompt in (FIND[0], MOOD[1], UNSEEN, None)]
    assert all(np.array_equal(vectors[0], other) for other in vectors[1:])


def test_the_way_of_unseen_instructions_can_be_changed_after_training(
    new_baseline: NewBaseline, texts: list[str]
) -> None:
    model, other = (
        new_baseline("static", instruction_variants=TASKS, fallback=fallback) for fallback in ("nearest", "default")
    )
    nearest = model.encode(texts, prompt=UNSEEN)
    encoder_of(model).use_fallback("default")
    np.testing.assert_array_equal(model.encode(texts, prompt=UNSEEN), other.encode(texts, prompt=UNSEEN))
    assert np.abs(model.encode(texts, prompt=UNSEEN) - nearest).max() > 1e-3
    encoder_of(model).use_fallback("nearest")
    np.testing.assert_array_equal(model.encode(texts, prompt=UNSEEN), nearest)


@pytest.mark.parametrize(("before", "after"), [("nearest", "shared"), ("shared", "default")])
def test_a_shared_set_cannot_be_changed_into_several_or_back(
    before: str, after: str, new_baseline: NewBaseline
) -> None:
    encoder = encoder_of(new_baseline("static", instruction_variants=TASKS, fallback=before))
    with pytest.raises(ConfigError, match="fallback 'shared' has weights of its own"):
        encoder.use_fallback(after)
    encoder.use_fallback(before)
    assert encoder.baseline.fallback == before


def test_two_tasks_have_different_vectors_for_one_text(model: BaselineEmbedder, texts: list[str]) -> None:
    one, other = (model.encode(texts, prompt=task[0]) for task in TASKS)
    assert np.abs(one - other).max(axis=1).min() > 1e-3


def test_vectors_that_were_trained_are_not_served_from_memory(model: BaselineEmbedder) -> None:
    before = model.encode(["a"], prompt=FIND[0])
    with torch.no_grad():
        encoder_of(model).vectors[0].mul_(-1.0)
    assert np.abs(model.encode(["a"], prompt=FIND[0]) - before).max() > 1e-3


def test_vectors_learn_a_few_pairs_by_heart(new_baseline: NewBaseline) -> None:
    model = new_baseline("static", instruction_variants=TASKS, moved=False).train()
    optimiser = torch.optim.Adam(encoder_of(model).trained_weights(), lr=0.01)
    pairs = (["red house", "a song", "the cold river"], ["flat stone", "old lamp", "loud road"])
    loss, losses = MultipleNegativesRankingLoss(model), []
    for _ in range(40):
        columns = [model.preprocess(texts, prompt=FIND[0]) for texts in pairs]
        encoder_of(model).embed_columns(columns)
        value = loss(columns, None)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]


# -- saved and loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_save_then_load_is_identity(fallback: str, new_baseline: NewBaseline, texts: list[str], tmp_path: Path) -> None:
    changes = {"deep_prompt_interval": 2, "num_soft_tokens": 3, "default_instruction": "in short"}
    model = new_baseline("static", "tiny-gemma3", model=changes, instruction_variants=TASKS, fallback=fallback)
    model.save(str(tmp_path / "model"))
    loaded = BaselineEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert encoder_of(loaded).baseline == encoder_of(model).baseline
    assert encoder_of(loaded).config == encoder_of(model).config
    for prompt in (*FIND, *MOOD, UNSEEN, None):
        np.testing.assert_array_equal(loaded.encode(texts, prompt=prompt), model.encode(texts, prompt=prompt))
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 1


def test_restoring_in_place_gives_the_saved_vectors(model: BaselineEmbedder, tmp_path: Path) -> None:
    expected = model.encode(["a"], prompt=FIND[0])
    model.save(str(tmp_path / "model"))
    with torch.no_grad():
        encoder_of(model).vectors.add_(1.0)
    assert np.abs(model.encode(["a"], prompt=FIND[0]) - expected).max() > 1e-3
    encoder_of(model).restore(tmp_path / "model")
    np.testing.assert_array_equal(model.encode(["a"], prompt=FIND[0]), expected)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"placement": "prefix"}, {"with_text": True}])
def test_a_prefix_or_a_dependence_on_the_text_is_refused(changes: dict[str, Any], new_baseline: NewBaseline) -> None:
    with pytest.raises(ConfigError, match="static soft tokens need placement 'suffix' and a prompter.template without"):
        new_baseline("static", model=changes)


def test_the_reader_is_not_trained(new_baseline: NewBaseline, new_backbone: Callable[..., Backbone]) -> None:
    reader = new_backbone("tiny-llama")
    model = new_baseline("static", reader=reader, instruction_variants=TASKS)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"0.vectors"}
    assert encoder_of(model).reader is reader
