"""The text's own states beside the summary: where they come from, and what they leave alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder
from promptembedder.backbone import Backbone, load_backbone, prefill
from promptembedder.errors import BackboneError, ConfigError, DataError
from promptembedder.method import (
    WhitenedTextPooling,
    build_text_pooling,
    content_mask,
    l2_normalize,
    pool,
    whitening_directions,
)

NewModel = Callable[..., PromptEmbedder]
SlowVectors = Callable[[PromptEmbedder, Sequence[str], str], torch.Tensor]
INSTRUCTION = "find the same thing"


@pytest.mark.parametrize("layers", [1, 2])
def test_the_states_are_those_after_the_layers_that_are_asked_for(
    family: str, layers: int, new_model: NewModel, slow_vectors: SlowVectors, texts: list[str]
) -> None:
    model = new_model(family, text_pooling_weight=2.0, text_pooling_layer=layers)
    with torch.no_grad():
        slow = slow_vectors(model, texts, INSTRUCTION)
    np.testing.assert_allclose(model.encode(texts, prompt=INSTRUCTION), slow.numpy(), atol=1e-5)


def test_more_layers_than_there_are_is_one_line(new_model: NewModel) -> None:
    with pytest.raises(BackboneError, match="text_pooling_layer is 99, but the reader has 3 layers"):
        new_model("tiny-gemma3", text_pooling_layer=99)


@pytest.mark.slow
def test_the_centre_takes_away_what_all_texts_of_a_real_reader_share() -> None:
    """Random weights have no such direction to take away."""
    try:
        reader = load_backbone(BackboneConfig(source="smollm2-135m", dtype="float32", layers=18), head=False)
    except BackboneError as error:
        pytest.skip(f"needs real weights: {error}")
    text_pooling = build_text_pooling(ModelConfig(text_pooling_layer=18), reader)
    assert text_pooling is not None
    texts = ["Who wrote Faust?", "The bank closes at five.", "Rain is likely tomorrow", "select name from users", "ok"]
    batch = reader.tokenizer.tokenize(texts, max_length=20)
    states = prefill(reader.decoder, batch.ids, batch.mask, hidden_layers=18)
    means = pool(states.hidden, batch.text_mask, pooling="mean")

    def likeness(vectors: torch.Tensor) -> float:
        unit = l2_normalize(vectors)
        return float((unit @ unit.T).fill_diagonal_(0).sum()) / (len(unit) * (len(unit) - 1))

    assert likeness(means) > 0.7
    assert likeness(means - text_pooling.centre.detach()) < 0.3


def test_an_empty_text_adds_nothing_and_has_finite_gradients() -> None:
    text_pooling = WhitenedTextPooling(torch.zeros(4), weight=3.0, rank=2)
    summary = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]], requires_grad=True)
    states = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 2]]).unsqueeze(1)
    found = text_pooling(summary, text_pooling.summarise(states, torch.tensor([[0], [1]])))
    torch.testing.assert_close(found[0], summary[0] / summary[0].norm())
    torch.testing.assert_close(found[1], summary[1] / summary[1].norm() + torch.tensor([0.0, 0, 0, 3]))
    found.sum().backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in (*text_pooling.parameters(), summary))


def test_the_newline_before_a_text_is_not_of_the_text(new_backbone: Callable[..., Backbone]) -> None:
    reader = new_backbone("tiny-llama")
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    assert content_mask(mask, reader).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


def _uneven(count: int, dim: int) -> torch.Tensor:
    """Rows that vary much more along some directions than along others, around a common point."""
    generator = torch.Generator().manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    return torch.randn(count, dim, generator=generator) @ torch.diag(torch.arange(1.0, dim + 1) ** 2) @ turned + 7


def test_shrinking_all_but_one_direction_is_whitening() -> None:
    texts = _uneven(400, 6)
    centre, shared = whitening_directions(texts, rank=5)
    rows = (texts - texts.mean(dim=0)).double()
    covariance = rows.T @ rows / len(rows)
    raised = covariance + 0.1 * covariance.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    variances, directions = torch.linalg.eigh(raised)
    whitened = rows @ directions @ torch.diag(variances**-0.5) @ directions.T
    found = (texts - centre) - (texts - centre) @ shared @ shared.T
    torch.testing.assert_close(l2_normalize(found), l2_normalize(whitened.float()), atol=1e-4, rtol=1e-4)


def test_directions_beyond_the_rank_stay_as_they_are() -> None:
    texts = _uneven(400, 6)
    centre, shared = whitening_directions(texts, rank=2)
    rows = texts - texts.mean(dim=0)
    _, directions = torch.linalg.eigh(rows.T @ rows)
    found = (texts - centre) - (texts - centre) @ shared @ shared.T
    torch.testing.assert_close(found @ directions[:, :4], rows @ directions[:, :4], atol=1e-3, rtol=1e-3)
    spread = (found @ directions).std(dim=0)
    assert float(spread[4:].max()) < float((rows @ directions).std(dim=0)[4:].min()) / 2


@pytest.mark.parametrize("texts", [torch.ones(3, 4), _uneven(2, 4), torch.zeros(1, 4)], ids=["alike", "two", "one"])
def test_texts_that_say_little_leave_the_rest_alone(texts: torch.Tensor) -> None:
    centre, shared = whitening_directions(texts, rank=3)
    assert bool(torch.isfinite(shared).all())
    torch.testing.assert_close(centre, texts.mean(dim=0))
    assert int((shared.norm(dim=0) > 1e-3).sum()) <= max(len(texts) - 1, 0)


def test_fitted_texts_change_neither_with_order_nor_with_batches(new_model: NewModel, texts: list[str]) -> None:
    models = [new_model(whitening_rank=2) for _ in range(3)]
    unfitted = models[0].encode(texts)
    models[0].encoder.fit_whitening(texts)
    models[1].encoder.fit_whitening(texts[::-1])
    models[2].encoder.fit_whitening(texts, batch_size=1)
    first, *others = [model.encode(texts) for model in models]
    assert np.abs(first - unfitted).max() > 1e-3
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-4)


def test_what_was_fitted_is_the_plain_mean_of_the_texts_own_states(new_model: NewModel, texts: list[str]) -> None:
    model = new_model(whitening_rank=2, text_pooling_layer=2)
    reader = model.encoder.reader
    means = []
    for text in texts:
        ids = reader.tokenizer.tokenize([text], max_length=512).ids
        if ids.shape[1] > len(reader.tokenizer.prefix):
            with torch.no_grad():
                hidden = reader.decoder(ids, output_hidden_states=True).hidden_states[2]
            means.append(hidden[0, len(reader.tokenizer.prefix) :].float().mean(dim=0))
    model.encoder.fit_whitening(texts)
    text_pooling = model.encoder.text_pooling
    assert text_pooling is not None
    centre, shared = whitening_directions(torch.stack(means), rank=2)
    torch.testing.assert_close(text_pooling.centre.detach(), centre, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text_pooling.shared @ text_pooling.shared.T, shared @ shared.T, atol=1e-4, rtol=1e-3)


def test_what_was_fitted_is_saved(new_model: NewModel, texts: list[str], tmp_path: Path) -> None:
    model = new_model(whitening_rank=2)
    model.encoder.fit_whitening(texts)
    model.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts), model.encode(texts))


def test_training_sees_the_summary_alone(new_model: NewModel, texts: list[str]) -> None:
    model, without = new_model(text_pooling_weight=2.0).train(), new_model(text_pooling_weight=0.0).train()
    for left, right in zip(model.encoder.trained_weights(), without.encoder.trained_weights(), strict=True):
        assert torch.equal(left, right)
    found, plain = (
        each(each.preprocess(texts, prompt=INSTRUCTION))["sentence_embedding"].detach() for each in (model, without)
    )
    assert torch.equal(found, plain)
    assert np.abs(model.encode(texts, prompt=INSTRUCTION) - plain.numpy()).max() > 1e-2


def test_fitting_to_few_texts_or_without_readout_is_one_line(new_model: NewModel) -> None:
    """Two texts changed all vectors of a trained model, and blank texts made `encode` fail."""
    model = new_model()
    before = model.encode(["a red house"])
    for texts in (["a", "b"], ["", ""], ["alike"] * 200, [f"text {row}" for row in range(99)]):
        with pytest.raises(DataError, match="at least 100 distinct texts, got"):
            model.fit_whitening(texts)
    np.testing.assert_array_equal(model.encode(["a red house"]), before)
    with pytest.raises(ConfigError, match="text_pooling_weight is 0"):
        new_model(text_pooling_weight=0.0).fit_whitening(["one", "two"])


def test_fitting_again_warns(new_config: Callable[..., ModelConfig], caplog: pytest.LogCaptureFixture) -> None:
    """A second fit changed all vectors of a trained model silently."""
    model = PromptEmbedder.create(config=new_config(), device="cpu")
    texts = [f"text {row}" for row in range(100)]
    model.fit_whitening(texts)
    assert "fitted before" not in caplog.text
    model.fit_whitening(texts)
    assert "the whitening was fitted before and is replaced: all vectors change" in caplog.text
