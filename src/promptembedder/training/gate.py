"""Training of the instruction gate alone, before all parts are trained together."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from promptembedder.data import LabelledCorpus
from promptembedder.errors import ConfigError
from promptembedder.method import RelaxedTokens
from promptembedder.model import DualEncoder, PromptEmbedder
from promptembedder.training.data import TrainingData, labels_with_contrast
from promptembedder.training.losses import InstructionContrastiveLoss
from promptembedder.training.recipe import GateConfig
from promptembedder.types import Float, Tensor

__all__ = ["train_gate"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Corpus:
    """Input of the gate from a corpus: mean states of texts, their labels, and the tokens of all instructions."""

    means: Float[Tensor, "texts dim"]
    labels: list[tuple[int, ...]]
    tokens: list[list[RelaxedTokens]]


def train_gate(
    model: PromptEmbedder,
    data: TrainingData,
    config: GateConfig,
    *,
    temperature: float,
    attributes_per_step: int,
    seed: int,
) -> float:
    """Train the gate and its directions in place on the labelled corpora of `data`.

    Returns:
        Mean loss of the last tenth of the steps.

    Raises:
        ConfigError: If the model has no gate, or the data no labelled corpus.
    """
    encoder = model.encoder
    if encoder.gate is None or encoder.text_pooling is None:
        raise ConfigError("gate.steps trains a gate, and model.gate_rank is 0. Set it to 256, or gate.steps to 0.")
    corpora = [task.corpus for task in data.tasks.values() if task.corpus is not None]
    if not corpora:
        raise ConfigError("gate.steps needs labelled corpora. Set data.corpora, or gate.steps to 0.")
    generator = random.Random(seed)
    logger.info("training the instruction gate on %d corpora", len(corpora))
    seen = [_prepared(encoder, corpus, config.texts, generator) for corpus in corpora]
    weights = [*encoder.gate.parameters(), *encoder.text_pooling.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0.01, total_iters=config.steps)
    loss_function = InstructionContrastiveLoss(model, temperature=temperature)
    losses: list[float] = []
    for _ in range(config.steps):
        corpus = generator.choice(seen)
        rows = generator.sample(range(len(corpus.labels)), min(config.batch_size, len(corpus.labels)))
        labels = [corpus.labels[row] for row in rows]
        usable = labels_with_contrast(labels)
        if not usable:
            continue
        drawn = generator.sample(usable, min(attributes_per_step, len(usable)))
        tokens = RelaxedTokens.cat([generator.choice(corpus.tokens[number]) for number in drawn], encoder.device)
        gates = encoder.gate(tokens).flatten(1)
        embeddings = [encoder.text_pooling.whiten(corpus.means[rows], gate.unsqueeze(0)) for gate in gates]
        loss = loss_function.loss_of(
            embeddings, torch.tensor([[label[number] for number in drawn] for label in labels])
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        decay.step()
        losses.append(float(loss.detach()))
    encoder.store.clear()
    last = losses[-max(len(losses) // 10, 1) :]
    mean = sum(last) / max(len(last), 1)
    logger.info("the gate's loss is %.3f after %d steps", mean, len(losses))
    return mean


def _prepared(encoder: DualEncoder, corpus: LabelledCorpus, count: int, generator: random.Random) -> _Corpus:
    texts = list(corpus.texts)
    texts = generator.sample(texts, min(count, len(texts)))
    by_text = corpus.labels_by_text()
    means, present = encoder.text_means(texts)
    kept = present.nonzero().flatten().tolist()
    return _Corpus(
        means=means[kept],
        labels=[by_text[texts[row]] for row in kept],
        tokens=[_tokens(encoder, attribute.instructions) for attribute in corpus.attributes],
    )


def _tokens(encoder: DualEncoder, instructions: Sequence[str]) -> list[RelaxedTokens]:
    return encoder.generate_relaxed(list(map(encoder.instruction_of, instructions)))
