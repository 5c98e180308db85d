"""The text's own states beside the summary: where they come from, and what they leave alone."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder
from promptembedder.backbones import Backbone, load_backbone, read_text
from promptembedder.errors import BackboneError
from promptembedder.models.text_readout import new_text_readout, own_tokens
from promptembedder.nn import TextReadout, pooled, unit_vectors

NewModel = Callable[..., PromptEmbedder]
SlowVectors = Callable[[PromptEmbedder, Sequence[str], str], torch.Tensor]
INSTRUCTION = "find the same thing"


@pytest.mark.parametrize("layers", [1, 2])
def test_the_states_are_those_after_the_layers_that_are_asked_for(
    family: str, layers: int, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model(family, text_weight=2.0, text_layers=layers)
    with torch.no_grad():
        slow = slow_vectors(model, texts, INSTRUCTION)
    np.testing.assert_allclose(model.encode(texts, prompt=INSTRUCTION), slow.numpy(), atol=1e-5)


def test_more_layers_than_there_are_is_one_line(new_model: NewModel) -> None:
    with pytest.raises(BackboneError, match="text_layers is 99, and the reader has 3 layers"):
        new_model("tiny-gemma3", text_layers=99)


@pytest.mark.slow
def test_the_centre_takes_away_what_all_texts_of_a_real_reader_share() -> None:
    """Random weights have no such direction to take away."""
    try:
        reader = load_backbone(BackboneConfig(source="smollm2-135m", dtype="float32", layers=18), head=False)
    except BackboneError as error:
        pytest.skip(f"needs real weights: {error}")
    readout = new_text_readout(ModelConfig(text_layers=18), reader)
    assert readout is not None
    texts = ["Who wrote Faust?", "The bank closes at five.", "Rain is likely tomorrow", "select name from users", "ok"]
    batch = reader.tokenizer.tokenize(texts, max_length=20)
    states = read_text(reader.decoder, batch.ids, batch.mask, hidden_layers=18)
    means = pooled(states.hidden, batch.text_mask, pooling="mean")

    def likeness(vectors: torch.Tensor) -> float:
        unit = unit_vectors(vectors)
        return float((unit @ unit.T).fill_diagonal_(0).sum()) / (len(unit) * (len(unit) - 1))

    assert likeness(means) > 0.7
    assert likeness(means - readout.centre.detach()) < 0.3


def test_an_empty_text_adds_nothing_and_has_finite_gradients() -> None:
    readout = TextReadout(torch.zeros(4), weight=3.0)
    summary = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]], requires_grad=True)
    text = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 2]])
    found = readout(summary, text, torch.tensor([[0], [1]]))
    torch.testing.assert_close(found[0], summary[0] / summary[0].norm())
    torch.testing.assert_close(found[1], summary[1] / summary[1].norm() + torch.tensor([0.0, 0, 0, 3]))
    found.sum().backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in (*readout.parameters(), summary))


def test_the_newline_before_a_text_is_not_of_the_text(new_backbone: Callable[..., Backbone]) -> None:
    reader = new_backbone("tiny-llama")
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    assert own_tokens(mask, reader).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
