"""Texts that leave the reader early: deeper layers see them as they were there, by whatever way they are embedded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from promptembedder import PromptEmbedder
from promptembedder.backbone import TextCacheConfig, TextCacheStore, decoder_layers, prefill
from promptembedder.errors import ConfigError
from promptembedder.export.onnx_file import FixedInstructionModel
from promptembedder.model import BaselineEmbedder

NewModel = Callable[..., PromptEmbedder]
SlowVectors = Callable[[PromptEmbedder, Sequence[str], str], Tensor]
INSTRUCTION = "find the same thing"
COUNT = 5  # soft tokens
EARLY = 0.34  # one layer of three


@contextmanager
def texts_left_at(model: PromptEmbedder, layer: int) -> Iterator[None]:
    """In a full pass over a text and its soft tokens, no layer from this one on changes the text: not by a cache."""

    def keep_text(_: nn.Module, inputs: tuple[Any, ...], states: Tensor) -> Tensor:
        return torch.cat([inputs[0][:, :-COUNT], states[:, -COUNT:]], dim=1)

    layers = list(decoder_layers(model.encoder.reader.decoder))
    handles = [each.register_forward_hook(keep_text) for each in layers[layer:]]
    yield
    for handle in handles:
        handle.remove()


def vectors(model: Any, texts: list[str]) -> np.ndarray:
    return model.encode(texts, prompt=INSTRUCTION)


def test_vectors_are_those_of_a_full_pass_in_which_texts_stay_as_they_were(
    family: str, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model(family, early_exit_fraction=EARLY)
    with texts_left_at(model, 1):
        slow = slow_vectors(model, texts, INSTRUCTION).detach().numpy()
    np.testing.assert_allclose(vectors(model, texts), slow, atol=1e-5)
    several = model.encode_instructions(texts, ["something else", INSTRUCTION])
    np.testing.assert_allclose(several[1], slow, atol=1e-5)
    model.early_exit_fraction = 1.0
    assert float((vectors(model, texts) * slow).sum(axis=1).min()) < 0.999


def test_gradients_are_those_of_a_full_pass_in_which_texts_stay_as_they_were(
    new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model("tiny-gemma3", early_exit_fraction=EARLY, text_pooling_weight=0.0).train()
    weights = torch.randn(len(texts), model.encoder.reader.dim, generator=torch.Generator().manual_seed(3))

    def gradients(embedded: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (weights * embedded).sum().backward()
        return {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}

    fast = gradients(model.encoder.forward(model.preprocess(texts, prompt=INSTRUCTION))["sentence_embedding"])
    with texts_left_at(model, 1):
        slow = gradients(slow_vectors(model, texts, INSTRUCTION))
    assert fast.keys() == slow.keys()
    for name, gradient in slow.items():
        torch.testing.assert_close(fast[name], gradient, atol=2e-5 * float(gradient.abs().max()), rtol=0)


def test_batch_order_and_padding_do_not_show(new_model: NewModel, texts: list[str]) -> None:
    model = new_model("tiny-qwen3", early_exit_fraction=EARLY)
    alone = np.stack([vectors(model, [text])[0] for text in texts])
    np.testing.assert_allclose(vectors(model, texts), alone, atol=1e-5)
    np.testing.assert_allclose(vectors(model, texts[::-1])[::-1], alone, atol=1e-5)


def test_it_can_be_changed_at_any_time_and_is_saved(new_model: NewModel, texts: list[str], tmp_path: Path) -> None:
    trained_so, changed = new_model(early_exit_fraction=EARLY), new_model()
    assert changed.early_exit_fraction == 1.0
    changed.early_exit_fraction = EARLY
    np.testing.assert_allclose(vectors(changed, texts), vectors(trained_so, texts), atol=1e-6)
    changed.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.early_exit_fraction == EARLY
    np.testing.assert_allclose(vectors(loaded, texts), vectors(changed, texts), atol=1e-6)


def test_static_soft_tokens_have_it_too(new_baseline: Callable[..., BaselineEmbedder], texts: list[str]) -> None:
    whole, early = (
        new_baseline("static", model={"early_exit_fraction": depth}, instruction_variants=((INSTRUCTION,),))
        for depth in (1.0, EARLY)
    )
    assert float((vectors(whole, texts) * vectors(early, texts)).sum(axis=1).min()) < 0.999


def test_an_exported_graph_is_the_same_model(new_model: NewModel, family: str, texts: list[str]) -> None:
    model = new_model(family, early_exit_fraction=EARLY)
    features = model.encoder.token_features([text for text in texts if text])
    soft = model.encoder.soft_tokens([INSTRUCTION])[0]
    with torch.no_grad(), FixedInstructionModel(model.encoder, soft).hooked() as graph:
        found = graph(features["input_ids"], features["attention_mask"])
    np.testing.assert_allclose(found.numpy(), vectors(model, [text for text in texts if text]), atol=1e-5)


def test_states_held_on_disk_belong_to_their_depth(new_model: NewModel, tmp_path: Path) -> None:
    ref = new_model().encoder.reader.identity
    config = TextCacheConfig(disk_gib=0.001, folder=str(tmp_path / "states"))
    TextCacheStore(config, ref, early_exit_fraction=EARLY)
    TextCacheStore(config, ref, early_exit_fraction=EARLY)
    with pytest.raises(ConfigError, match="states"):
        TextCacheStore(config, ref)


@pytest.mark.parametrize("depth", [0.0, -1.0, 1.01, float("nan")])
def test_a_depth_that_is_no_share_is_refused(depth: float, new_model: NewModel) -> None:
    model = new_model()
    with pytest.raises(ConfigError, match="early_exit_fraction must be above 0 and at most 1, got .*Try 0.7"):
        model.early_exit_fraction = depth
    assert model.early_exit_fraction == 1.0


def test_an_exit_above_the_text_s_own_states_is_refused(new_model: NewModel) -> None:
    model = new_model(text_pooling_layer=2)
    with pytest.raises(
        ConfigError,
        match="early_exit_fraction 0.34 is 1 layers, but text pooling needs 2. Raise it, or lower text_pooling_layer",
    ):
        model.early_exit_fraction = EARLY
    with pytest.raises(ConfigError, match="lower text_pooling_layer"):
        new_model(text_pooling_layer=2, early_exit_fraction=EARLY)


def test_soft_tokens_before_the_text_have_none(new_model: NewModel) -> None:
    with pytest.raises(ConfigError, match="early_exit_fraction needs placement 'suffix'"):
        new_model(placement="prefix", early_exit_fraction=EARLY)


def test_states_of_all_layers_can_still_be_the_text_s_own(new_model: NewModel, texts: list[str]) -> None:
    """Though of the last layer keys and values would be enough for the soft tokens."""
    encoder = new_model("tiny-llama", text_pooling_layer=3).encoder
    rows = [tuple(encoder.reader.tokenizer.tokenize([text], max_length=40).ids[0].tolist()) for text in texts if text]
    for row in rows:
        plain = prefill(encoder.reader.decoder, torch.tensor([row]), torch.ones(1, len(row)).long(), hidden_layers=3)
        torch.testing.assert_close(encoder.read_rows([row]).hidden, plain.hidden, atol=1e-6, rtol=0)
