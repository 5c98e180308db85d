"""The joint pass over a batch's columns is the pass column by column, with the prompter asked once."""

from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from promptembedder.method import ModelConfig
from promptembedder.model import PromptEmbedder

COLUMNS = (
    ["a red house", "cold", ""],
    ["the house is red", "it is cold", "nothing at all here"],
    ["x", "y", "z z z z"],
)


def _features(model: PromptEmbedder, instructions: tuple[str, ...]) -> list[dict[str, Any]]:
    return [model.preprocess(texts, prompt=words) for texts, words in zip(COLUMNS, instructions, strict=True)]


def _gradients(model: PromptEmbedder, *, together: bool) -> tuple[float, list[torch.Tensor]]:
    model.train()
    model.zero_grad()
    features = _features(model, ("find", "store", "store"))
    if together:
        model.encoder.embed_columns(features)
    loss = MultipleNegativesRankingLoss(model)(features, None)
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in model.encoder.trained_weights() if weight.grad is not None]


def test_columns_embedded_together_give_the_loss_and_gradients_of_one_by_one(tiny_model: ModelConfig) -> None:
    model = PromptEmbedder.create(config=tiny_model, device="cpu")
    apart, together = _gradients(model, together=False), _gradients(model, together=True)
    assert abs(apart[0] - together[0]) < 1e-5
    assert len(apart[1]) == len(together[1]) > 0
    for left, right in zip(apart[1], together[1], strict=True):
        assert (left - right).norm() <= 1e-5 * left.norm()


def test_the_prompter_reads_all_instructions_of_a_step_in_one_pass(tiny_model: ModelConfig) -> None:
    model = PromptEmbedder.create(config=tiny_model, device="cpu")
    model.train()
    calls: list[int] = []
    prompter = model.encoder.prompter
    assert prompter is not None
    prompter.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    model.encoder.embed_columns(_features(model, ("find", "store", "store")))
    assert calls == [2]
