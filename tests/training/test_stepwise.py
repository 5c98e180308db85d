"""The loss after one soft token, after two, and so on: against its formula, and against one prefix read at a time."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from promptembedder import PromptEmbedder
from promptembedder.backbone import left_pad, prefill
from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder
from promptembedder.training import LossConfig, StepwiseLoss, build_contrastive_loss

NewModel = Callable[..., PromptEmbedder]
COLUMNS = (["red car", "cold river song"], ["warm car", "slow river"], ["old stone", "blue"])
STEPWISE = LossConfig(temperature=0.1, stepwise=True)


def columns_of(model: PromptEmbedder) -> list[dict[str, Any]]:
    return [model.preprocess(list(texts), prompt="find it") for texts in COLUMNS]


def prefixes_read_alone(encoder: SoftTokenEncoder, features: dict[str, Any], soft: Tensor, count: int) -> Tensor:
    """Unit vectors of the texts followed by the first `count` soft tokens and nothing else."""
    ids, mask = left_pad(features["input_ids"], features["attention_mask"])
    return encoder.prefix_embeddings(prefill(encoder.reader.decoder, ids, mask), soft[:, :count])[:, -1]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("changes", [{}, {"deep_prompt_interval": 1}])
def test_a_step_is_the_text_followed_by_the_first_soft_tokens_alone(
    pooling: str, changes: dict[str, Any], new_model: NewModel, family: str
) -> None:
    model = new_model(family, pooling=pooling, **changes).train()
    encoder = model.encoder
    with torch.no_grad():
        for weight in encoder.trained_weights():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        features = columns_of(model)[0]
        soft = encoder.soft_tokens(["find it"]).expand(2, -1, -1)
        steps = encoder.prefix_embeddings(encoder.read([features]), soft)
        for count in range(1, soft.shape[1] + 1):
            alone = prefixes_read_alone(encoder, features, soft, count)
            torch.testing.assert_close(steps[:, count - 1], alone, atol=2e-5, rtol=0)
        torch.testing.assert_close(steps[:, -1], model(features)["sentence_embedding"], atol=1e-6, rtol=0)
        assert not torch.allclose(steps[:, 0], steps[:, -1], atol=1e-3)


@pytest.mark.parametrize("in_batch", [True, False])
def test_the_loss_is_the_mean_over_the_steps_and_what_getting_worse_costs(in_batch: bool, new_model: NewModel) -> None:
    model = new_model(deep_prompt_interval=1).train()
    with torch.no_grad():
        for weight in model.encoder.trained_weights():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    loss = build_contrastive_loss(model, STEPWISE, in_batch_negatives=in_batch)
    anchor, *documents = [model(features)["step_embeddings"] for features in columns_of(model)]
    per_step = []
    for step in range(anchor.shape[1]):
        total = 0.0
        for row in range(2):
            rows = range(2) if in_batch else [row]
            candidates = torch.cat([document[list(rows), step] for document in documents])
            cosines = candidates @ anchor[row, step] / 0.1
            total -= cosines.log_softmax(dim=0)[row if in_batch else 0].item() / 2
        per_step.append(total)
    worse = [max(torch.tensor(after / before).log().item(), 0) for before, after in itertools.pairwise(per_step)]
    assert max(worse) > 0  # or the penalty would not be seen
    expected = sum(per_step) / len(per_step) + sum(worse) / len(worse)
    assert loss(columns_of(model), None).item() == pytest.approx(expected, rel=1e-4)


def test_columns_embedded_together_have_the_same_steps(new_model: NewModel) -> None:
    model = new_model(deep_prompt_interval=1).train()
    loss = build_contrastive_loss(model, STEPWISE, in_batch_negatives=True)
    together = columns_of(model)
    model.encoder.embed_columns(together)
    torch.testing.assert_close(loss(together, None), loss(columns_of(model), None), atol=1e-5, rtol=1e-5)


def test_without_steps_it_is_the_loss_alone(new_model: NewModel) -> None:
    model = new_model().eval()
    plain = build_contrastive_loss(model, LossConfig(temperature=0.1), in_batch_negatives=True)
    stepwise = build_contrastive_loss(model, STEPWISE, in_batch_negatives=True)
    torch.testing.assert_close(stepwise(columns_of(model), None), plain(columns_of(model), None))
    one = new_model(num_soft_tokens=1).train()
    torch.testing.assert_close(
        build_contrastive_loss(one, STEPWISE, in_batch_negatives=True)(columns_of(one), None),
        build_contrastive_loss(one, LossConfig(temperature=0.1), in_batch_negatives=True)(columns_of(one), None),
    )


def test_the_gradient_of_every_step_reaches_the_prompter(new_model: NewModel) -> None:
    model = new_model().train()
    loss = build_contrastive_loss(model, STEPWISE, in_batch_negatives=True)
    assert isinstance(loss, StepwiseLoss)
    loss(columns_of(model), None).backward()
    assert model.encoder.prompter is not None
    assert any(weight.grad is not None and weight.grad.any() for weight in model.encoder.prompter.parameters())
    assert loss.get_config_dict()["loss"] == "MultipleNegativesRankingLoss"


def test_it_needs_soft_tokens_after_the_text(new_model: NewModel) -> None:
    model = new_model(placement="prefix", deep_prompt_interval=0, text_pooling_weight=0.0)
    with pytest.raises(ConfigError, match=r"loss.stepwise needs soft tokens after the text. Set it to false."):
        build_contrastive_loss(model, STEPWISE, in_batch_negatives=True)
