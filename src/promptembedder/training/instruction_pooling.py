"""Training of the instruction pooling alone, before all parts are trained together."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from promptembedder.data import LabelledCorpus
from promptembedder.errors import ConfigError
from promptembedder.method import DualEncoder, InstructionPooling, RelaxedTokens
from promptembedder.method.pooling import ProjectedTokens
from promptembedder.model import PromptEmbedder
from promptembedder.training.data import TrainingData, labels_with_contrast
from promptembedder.training.losses import InstructionContrastiveLoss
from promptembedder.training.recipe import InstructionPoolingConfig
from promptembedder.types import Float, Tensor

__all__ = ["train_instruction_pooling"]

logger = logging.getLogger(__name__)

_WARMUP = 20  # steps


@dataclass(frozen=True)
class _Texts:
    """Frozen states of texts: reduced states of their tokens, bfloat16, and whitened mean states."""

    tokens: list[Tensor]  # [tokens reduced] each
    means: Float[Tensor, "texts dim"]

    def project(self, pooling: InstructionPooling, rows: Sequence[int]) -> ProjectedTokens:
        """Compute keys and values of some of the texts."""
        own = [self.tokens[row].float() for row in rows]
        reduced = pad_sequence(own, batch_first=True).to(self.means.device)
        lengths = torch.tensor([len(one) for one in own], device=reduced.device)
        mask = (torch.arange(reduced.shape[1], device=reduced.device) < lengths.unsqueeze(1)).long()
        return pooling.project(reduced, mask, self.means[rows])


@dataclass(frozen=True)
class _Corpus:
    """Texts of a corpus, their labels, and the prompter's tokens of all instructions by attribute."""

    texts: _Texts
    labels: list[tuple[int, ...]]
    tokens: list[list[RelaxedTokens]]


def train_instruction_pooling(
    model: PromptEmbedder,
    data: TrainingData,
    config: InstructionPoolingConfig,
    *,
    temperature: float,
    attributes_per_step: int,
    seed: int,
) -> float:
    """Train the instruction pooling and the queries in place on the labelled corpora of `data`.

    Returns:
        Mean loss of the last tenth of the steps.

    Raises:
        ConfigError: If the model has no instruction pooling, or the data no labelled corpus.
    """
    encoder = model.encoder
    if encoder.query is None or encoder.text_pooling is None or encoder.text_pooling.instructed is None:
        raise ConfigError(
            "instruction_pooling.steps needs model.instruction_heads, which is 0. Set it to 4, or the steps to 0."
        )
    corpora = [task.corpus for task in data.tasks.values() if task.corpus is not None]
    if not corpora:
        raise ConfigError("instruction_pooling.steps needs labelled corpora. Set data.corpora, or the steps to 0.")
    generator = random.Random(seed)
    logger.info("training the instruction pooling on %d corpora", len(corpora))
    seen = [_prepared(encoder, corpus, config.texts, generator) for corpus in corpora]
    pooling = encoder.text_pooling.instructed
    weights = [*encoder.query.parameters(), *pooling.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARMUP, 1.0) * (1 - step / config.steps)
    )
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
        text = corpus.texts.project(pooling, rows)
        embeddings = [pooling(text, query.unsqueeze(0)) for query in encoder.query(tokens).flatten(1)]
        loss = loss_function.loss_of(
            embeddings, torch.tensor([[label[number] for number in drawn] for label in labels])
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    encoder.store.clear()
    last = losses[-max(len(losses) // 10, 1) :]
    mean = sum(last) / max(len(last), 1)
    logger.info("the loss of the instruction pooling is %.3f after %d steps", mean, len(losses))
    return mean


def _prepared(encoder: DualEncoder, corpus: LabelledCorpus, count: int, generator: random.Random) -> _Corpus:
    texts = list(corpus.texts)
    texts = sorted(generator.sample(texts, min(count, len(texts))), key=len)
    by_text = corpus.labels_by_text()
    states, kept = _frozen_states(encoder, texts)
    return _Corpus(
        texts=states,
        labels=[by_text[texts[row]] for row in kept],
        tokens=[_tokens(encoder, attribute.instructions) for attribute in corpus.attributes],
    )


@torch.no_grad()
def _frozen_states(encoder: DualEncoder, texts: Sequence[str]) -> tuple[_Texts, list[int]]:
    """Return the states of the texts that are not empty, and which texts these are."""
    assert encoder.text_pooling is not None
    pooling = encoder.text_pooling.instructed
    assert pooling is not None
    tokens, means, kept = [], [], []
    for states in encoder.text_states(texts):
        for own in states:
            kept.append(len(own) > 0)
            if kept[-1]:
                everywhere = torch.ones(1, len(own), dtype=torch.long, device=own.device)
                tokens.append(pooling.reduce(own.unsqueeze(0), everywhere)[0].bfloat16().cpu())
                means.append(encoder.text_pooling.whitened_mean(own.unsqueeze(0), everywhere)[0])
    return _Texts(tokens, torch.stack(means)), [row for row, present in enumerate(kept) if present]


def _tokens(encoder: DualEncoder, instructions: Sequence[str]) -> list[RelaxedTokens]:
    return encoder.generate_relaxed(list(map(encoder.instruction_of, instructions)))
