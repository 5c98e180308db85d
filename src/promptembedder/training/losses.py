"""Losses: sentence-transformers' own, and one for label data."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from torch.nn import functional as F

from promptembedder.errors import ConfigError
from promptembedder.model import InstructedTransformer
from promptembedder.method import SoftTokenEncoder
from promptembedder.types import Float, Tensor
from promptembedder.training.recipe import LossConfig

__all__ = ["OwnNegativesLoss", "StepwiseLoss", "contrastive_loss"]


_LEAST_LOSS = 1e-6  # the logarithm of a loss of zero would be a reward without end


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


class StepwiseLoss(nn.Module):
    """mean over k of L_k, plus mean over k < K of relu(log L_k+1 - log L_k); L_k: the loss after k soft tokens.

    Each soft token has to be of use already, and one more must not make it worse: GIRCSE (Tsai et al. 2025,
    arXiv:2509.24291). In evaluation, which has no steps, the loss alone.
    """

    def __init__(self, model: InstructedTransformer, loss: nn.Module) -> None:
        """Have the steps of `model` told, and compare them by `loss`.

        Raises:
            ConfigError: The model has no soft tokens after the text.
        """
        super().__init__()
        encoder = model.text_encoder
        if not isinstance(encoder, SoftTokenEncoder) or encoder.settings.placement != "suffix":
            raise ConfigError("loss.stepwise needs soft tokens after the text. Set it to false.")
        encoder.gives_steps = True
        self.model, self.loss = model, loss

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Float[Tensor, ""]:
        """Loss of the columns anchor, positive, negative_1..n."""
        columns = [self.model(features) for features in sentence_features]
        if "step_embeddings" not in columns[0]:
            return self.loss(columns, labels)
        by_step = zip(*(column["step_embeddings"].unbind(dim=1) for column in columns), strict=True)
        losses = torch.stack([self.loss([{"sentence_embedding": one} for one in step], labels) for step in by_step])
        if len(losses) == 1:
            return losses[0]
        return losses.mean() + losses.clamp_min(_LEAST_LOSS).log().diff().relu().mean()

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        own = self.loss.get_config_dict()  # type: ignore[operator]  # which all losses that come here have
        return {"loss": type(self.loss).__name__, **own}


def contrastive_loss(model: InstructedTransformer, config: LossConfig, *, in_batch_negatives: bool) -> nn.Module:
    """The loss of a task.

    Raises:
        ConfigError: It is stepwise, and the model has no steps.
    """
    loss = _loss_of_one_embedding(model, config, in_batch_negatives)
    return StepwiseLoss(model, loss) if config.stepwise else loss


def _loss_of_one_embedding(model: SentenceTransformer, config: LossConfig, in_batch_negatives: bool) -> nn.Module:
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
