"""Contrastive losses: with in-batch negatives, with explicit negatives only, and stepwise over soft tokens."""

from collections.abc import Iterable, Sequence
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

__all__ = ["ExplicitNegativesLoss", "InstructionContrastiveLoss", "StepwiseLoss", "build_contrastive_loss"]

_MIN_LOSS = 1e-6  # keeps the logarithm finite


class _TemperatureLoss(nn.Module):
    def __init__(self, model: SentenceTransformer, *, temperature: float) -> None:
        """Store the model and the temperature that divides the cosines."""
        super().__init__()
        self.model = model
        self.temperature = temperature

    def get_config_dict(self) -> dict[str, Any]:
        """Return the loss settings that the model card lists."""
        return {"temperature": self.temperature}


class ExplicitNegativesLoss(_TemperatureLoss):
    """InfoNCE over the explicit positive and negatives of each row, without in-batch negatives.

    For label data, where another row of the batch may have the same label and so is not a negative.
    """

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Float[Tensor, ""]:
        """Compute the mean loss over the columns anchor, positive, negative_1..n."""
        anchor, *documents = [self.model(features)["sentence_embedding"] for features in sentence_features]
        candidates = torch.stack(documents, dim=1)  # [batch 1+negatives dim]
        cosines = F.cosine_similarity(anchor.unsqueeze(1), candidates, dim=-1)
        target = torch.zeros(len(anchor), dtype=torch.long, device=anchor.device)
        return F.cross_entropy(cosines / self.temperature, target)


class InstructionContrastiveLoss(_TemperatureLoss):
    """Supervised contrast of the same texts under several instructions, each with labels of its own.

    Under one instruction, texts with the anchor's label are positives and texts with another label are negatives:

        L = -mean over anchors and their positives p of log(exp(s_p / t) / sum over other labelled texts exp(s / t))

    This is the supervised contrastive loss of Khosla et al. 2020 (arXiv:2004.11362), averaged over the instructions. A
    text that is near under one instruction has to be far under another, which no static prompt can satisfy.
    """

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Float[Tensor, ""]:
        """Compute the mean loss over the columns, one per instruction, of the same texts.

        Args:
            labels: Label numbers, [texts columns]. -1 leaves a text out under that instruction.

        Raises:
            ConfigError: If there are no labels.
        """
        if labels is None:
            raise ConfigError("the loss of labelled corpora needs labels. Train with data.corpora.")
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.loss_of(embeddings, labels)

    def loss_of(self, embeddings: Sequence[Float[Tensor, "texts dim"]], labels: Tensor) -> Float[Tensor, ""]:
        """Compute the mean loss over the embeddings of the same texts under several instructions."""
        losses = [self._of_instruction(vectors, labels[:, column]) for column, vectors in enumerate(embeddings)]
        return torch.stack(losses).mean()

    def _of_instruction(self, vectors: Float[Tensor, "texts dim"], labels: Tensor) -> Float[Tensor, ""]:
        labelled = labels.to(vectors.device) >= 0
        vectors, labels = F.normalize(vectors[labelled].float(), dim=-1), labels.to(vectors.device)[labelled]
        itself = torch.eye(len(labels), dtype=torch.bool, device=vectors.device)
        positive = (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~itself
        logits = (vectors @ vectors.T / self.temperature).masked_fill(itself, float("-inf"))
        log_share = logits - logits.logsumexp(dim=1, keepdim=True)
        anchors = positive.any(dim=1) & (~positive & ~itself).any(dim=1)
        if not bool(anchors.any()):  # nothing to contrast: zero, with a graph
            return vectors.sum() * 0.0
        total = torch.where(positive, log_share, 0.0).sum(dim=1)
        return -(total / positive.sum(dim=1).clamp_min(1))[anchors].mean()


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
