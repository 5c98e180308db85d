"""Contrastive losses: with in-batch negatives, with explicit negatives only, and stepwise over soft tokens."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from torch.nn import functional as F

from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder
from promptembedder.model import PromptedSentenceTransformer
from promptembedder.training.recipe import LossConfig
from promptembedder.types import Float, Tensor

__all__ = ["ExplicitNegativesLoss", "StepwiseLoss", "build_contrastive_loss"]

_MIN_LOSS = 1e-6  # keeps the logarithm finite


class ExplicitNegativesLoss(nn.Module):
    """InfoNCE over the explicit positive and negatives of each row, without in-batch negatives.

    For label data, where another row of the batch may have the same label and so is not a negative.
    """

    def __init__(self, model: SentenceTransformer, *, temperature: float) -> None:
        """Store the model and the temperature that divides the cosines."""
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Float[Tensor, ""]:
        """Compute the mean loss over the columns anchor, positive, negative_1..n."""
        anchor, *documents = [self.model(features)["sentence_embedding"] for features in sentence_features]
        candidates = torch.stack(documents, dim=1)  # [batch 1+negatives dim]
        cosines = F.cosine_similarity(anchor.unsqueeze(1), candidates, dim=-1)
        target = torch.zeros(len(anchor), dtype=torch.long, device=anchor.device)
        return F.cross_entropy(cosines / self.temperature, target)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the loss settings that the model card lists."""
        return {"temperature": self.temperature}


class StepwiseLoss(nn.Module):
    """Stepwise loss: mean over k of L_k, plus mean over k < K of relu(log L_k+1 - log L_k).

    L_k is the loss after k soft tokens: every prefix of the soft tokens has to be useful, and a further soft token is
    penalised if it increases the loss. From GIRCSE (Tsai et al. 2025, arXiv:2509.24291). In evaluation, which has no
    steps, the loss of the final embedding.
    """

    def __init__(self, model: PromptedSentenceTransformer, loss: nn.Module) -> None:
        """Let `model` return the embeddings of all prefixes, and apply `loss` to each of them.

        Raises:
            ConfigError: If the model has no soft tokens after the text.
        """
        super().__init__()
        encoder = model.text_encoder
        if not isinstance(encoder, SoftTokenEncoder) or encoder.config.placement != "suffix":
            raise ConfigError("loss.stepwise needs soft tokens after the text. Set it to false.")
        encoder.return_prefix_embeddings = True
        self.model, self.loss = model, loss

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Float[Tensor, ""]:
        """Compute the loss over the columns anchor, positive, negative_1..n."""
        columns = [self.model(features) for features in sentence_features]
        if "step_embeddings" not in columns[0]:
            return self.loss(columns, labels)
        by_step = zip(*(column["step_embeddings"].unbind(dim=1) for column in columns), strict=True)
        losses = torch.stack([self.loss([{"sentence_embedding": one} for one in step], labels) for step in by_step])
        if len(losses) == 1:
            return losses[0]
        return losses.mean() + losses.clamp_min(_MIN_LOSS).log().diff().relu().mean()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the loss settings that the model card lists."""
        config = self.loss.get_config_dict()  # type: ignore[operator]  # nn.Module has no such method, its losses do
        return {"loss": type(self.loss).__name__, **config}


def build_contrastive_loss(
    model: PromptedSentenceTransformer, config: LossConfig, *, in_batch_negatives: bool
) -> nn.Module:
    """Build the loss of a task.

    Raises:
        ConfigError: If `config.stepwise` is set and the model has no soft tokens after the text.
    """
    loss = _build_final_loss(model, config, in_batch_negatives)
    return StepwiseLoss(model, loss) if config.stepwise else loss


def _build_final_loss(model: SentenceTransformer, config: LossConfig, in_batch_negatives: bool) -> nn.Module:
    if not in_batch_negatives:
        return ExplicitNegativesLoss(model, temperature=config.temperature)
    if config.symmetric:
        return MultipleNegativesRankingLoss(
            model,
            scale=1 / config.temperature,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )
    return MultipleNegativesRankingLoss(model, scale=1 / config.temperature)
