"""Losses: sentence-transformers' own, and one for label data."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from torch.nn import functional as F

from promptembedder.shapes import Float, Tensor
from promptembedder.training.recipe import LossConfig

__all__ = ["OwnNegativesLoss", "contrastive_loss"]


class OwnNegativesLoss(nn.Module):
    """InfoNCE over a row's own positive and own negatives only.

    For label data: another row of the batch may carry the same label, so it is no negative.
    """

    def __init__(self, model: SentenceTransformer, *, temperature: float) -> None:
        """Compare embeddings of `model` by cosine over `temperature`."""
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Float[Tensor, ""]:
        """Mean loss of the columns anchor, positive, negative_1..n."""
        anchor, *documents = [self.model(features)["sentence_embedding"] for features in sentence_features]
        candidates = torch.stack(documents, dim=1)  # [batch 1+negatives dim]
        cosines = F.cosine_similarity(anchor.unsqueeze(1), candidates, dim=-1)
        target = torch.zeros(len(anchor), dtype=torch.long, device=anchor.device)
        return F.cross_entropy(cosines / self.temperature, target)

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"temperature": self.temperature}


def contrastive_loss(model: SentenceTransformer, config: LossConfig, *, in_batch_negatives: bool) -> nn.Module:
    """The loss of a task."""
    if not in_batch_negatives:
        return OwnNegativesLoss(model, temperature=config.temperature)
    if config.symmetric:
        return MultipleNegativesRankingLoss(
            model,
            scale=1 / config.temperature,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )
    return MultipleNegativesRankingLoss(model, scale=1 / config.temperature)
