"""Losses against their formula written out."""

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

from promptembedder.method import ModelConfig
from promptembedder.model import PromptEmbedder
from promptembedder.training import ExplicitNegativesLoss, LossConfig, build_contrastive_loss


def test_label_data_is_compared_with_its_own_negatives_only(tiny_model: ModelConfig) -> None:
    model = PromptEmbedder.create(config=tiny_model, device="cpu")
    model.eval()  # as `encode` below: in training the text's own states are left out
    columns = (["a b", "c d e"], ["a c", "c d"], ["x", "y z"])
    features = [model.preprocess(list(texts), prompt="Find it") for texts in columns]
    loss = ExplicitNegativesLoss(model, temperature=0.1)(features)
    anchor, positive, negative = (torch.tensor(model.encode(list(texts), prompt="Find it")) for texts in columns)
    expected = 0.0
    for row in range(2):
        good, bad = (anchor[row] @ positive[row] / 0.1).exp(), (anchor[row] @ negative[row] / 0.1).exp()
        expected -= (good / (good + bad)).log().item() / 2
    assert abs(loss.item() - expected) < 1e-5


def test_the_loss_follows_the_task(tiny_model: ModelConfig) -> None:
    model = PromptEmbedder.create(config=tiny_model, device="cpu")
    config = LossConfig(temperature=0.02)
    in_batch: nn.Module = build_contrastive_loss(model, config, in_batch_negatives=True)
    assert isinstance(in_batch, MultipleNegativesRankingLoss)
    assert in_batch.temperature == 0.02
    assert isinstance(build_contrastive_loss(model, config, in_batch_negatives=False), ExplicitNegativesLoss)
