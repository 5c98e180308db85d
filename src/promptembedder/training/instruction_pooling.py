"""Training of the instruction pooling alone, before all parts are trained together."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from promptembedder.data import LabelledCorpus
from promptembedder.errors import ConfigError
from promptembedder.method import DualEncoder, InstructionPooling, InstructionQuery, RelaxedTokens
from promptembedder.method.pooling import ProjectedTokens
from promptembedder.model import PromptEmbedder
from promptembedder.training.data import TaskData, TrainingData, labels_with_contrast
from promptembedder.training.losses import InstructionContrastiveLoss
from promptembedder.training.recipe import InstructionPoolingConfig
from promptembedder.types import Float, Tensor

__all__ = ["train_instruction_pooling"]

_WARMUP = 20  # steps
_INSTRUCTIONS = 64  # that the prompter processes at once


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


class _Corpus:
    """Texts of a labelled corpus, and the prompter's tokens of all instructions by attribute."""

    def __init__(self, encoder: DualEncoder, corpus: LabelledCorpus, count: int, generator: random.Random) -> None:
        texts = list(corpus.texts)
        texts = sorted(generator.sample(texts, min(count, len(texts))), key=len)
        by_text = corpus.labels_by_text()
        self.texts, kept = _frozen_states(encoder, texts)
        self.labels = [by_text[texts[row]] for row in kept]
        self.tokens = [_tokens(encoder, attribute.instructions) for attribute in corpus.attributes]

    def loss(self, encoder: DualEncoder, step: "_Step") -> Tensor | None:
        """Compute the loss of texts under several attributes. None if no drawn texts agree and differ in one."""
        rows = step.draw(len(self.labels))
        labels = [self.labels[row] for row in rows]
        usable = labels_with_contrast(labels)
        if not usable:
            return None
        drawn = step.generator.sample(usable, min(step.attributes, len(usable)))
        pooling, query = _parts(encoder)
        tokens = RelaxedTokens.cat([step.generator.choice(self.tokens[number]) for number in drawn], encoder.device)
        text = self.texts.project(pooling, rows)
        embeddings = [pooling(text, one.unsqueeze(0)) for one in query(tokens).flatten(1)]
        codes = torch.tensor([[label[number] for number in drawn] for label in labels])
        return step.contrast.loss_of(embeddings, codes)


class _Pairs:
    """Pairs of a task with the prompter's tokens of their instructions; a pair may have its own."""

    def __init__(self, encoder: DualEncoder, task: TaskData, count: int, generator: random.Random) -> None:
        chosen = task.train.select(generator.sample(range(len(task.train)), min(count, len(task.train))))
        columns = {column: list(chosen[column]) for column in chosen.column_names}
        own = columns.pop("instruction", None)
        texts = sorted({text for column in columns.values() for text in column}, key=len)
        self.texts, kept = _frozen_states(encoder, texts)
        number = {texts[row]: place for place, row in enumerate(kept)}
        pairs = list(zip(*columns.values(), strict=True))
        present = [row for row, pair in enumerate(pairs) if all(text in number for text in pair)]
        self.rows = [[number[text] for text in pairs[row]] for row in present]
        self.own = None if own is None else [encoder.instruction_of(own[row]) for row in present]
        named = self.own or list(map(encoder.instruction_of, task.instructions or [None]))
        self.tokens = _tokens_by_instruction(encoder, named)
        self.documents = _tokens_by_instruction(
            encoder, list(map(encoder.instruction_of, task.document_instructions or [None]))
        )
        self.in_batch_negatives = task.in_batch_negatives

    def loss(self, encoder: DualEncoder, step: "_Step") -> Tensor | None:
        """Compute InfoNCE over the distinct documents of the drawn pairs. None if there is one document only."""
        rows = step.draw(len(self.rows))
        drawn = [self.rows[row] for row in rows]
        documents = list(dict.fromkeys(text for row in drawn for text in row[1:]))
        if len(documents) < 2:
            return None
        wording = step.generator.choice(list(self.tokens))
        each = [wording] * len(rows) if self.own is None else [self.own[row] for row in rows]
        of_documents = wording if wording in self.documents else step.generator.choice(list(self.documents))
        anchors = self._embed(encoder, [row[0] for row in drawn], [self.tokens[one] for one in each])
        found = self._embed(encoder, documents, [self.documents[of_documents]])
        scores = anchors @ found.T / step.contrast.temperature
        column = {text: place for place, text in enumerate(documents)}
        if not self.in_batch_negatives:
            candidates = torch.zeros_like(scores, dtype=torch.bool)
            for place, row in enumerate(drawn):
                candidates[place, [column[text] for text in row[1:]]] = True
            scores = scores.masked_fill(~candidates, float("-inf"))
        return F.cross_entropy(scores, torch.tensor([column[row[1]] for row in drawn], device=scores.device))

    def _embed(self, encoder: DualEncoder, rows: list[int], tokens: list[RelaxedTokens]) -> Float[Tensor, "texts dim"]:
        pooling, query = _parts(encoder)
        queries = query(RelaxedTokens.cat(tokens, encoder.device)).flatten(1)
        return F.normalize(pooling(self.texts.project(pooling, rows), queries), dim=-1)


@dataclass(frozen=True)
class _Step:
    """Random state, loss of labels and size of a step."""

    generator: random.Random
    contrast: InstructionContrastiveLoss
    batch_size: int
    attributes: int

    def draw(self, count: int) -> list[int]:
        """Draw the rows of a step."""
        return self.generator.sample(range(count), min(self.batch_size, count))


def train_instruction_pooling(
    model: PromptEmbedder,
    data: TrainingData,
    config: InstructionPoolingConfig,
    *,
    temperature: float,
    attributes_per_step: int,
    seed: int,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> float:
    """Train the instruction pooling and the queries in place, each step on one corpus or task of `data`.

    Args:
        on_progress: Called with a unit of work, the number of completed units and their total.

    Returns:
        Mean loss of the last tenth of the steps.

    Raises:
        ConfigError: If the model has no instruction pooling.
    """
    encoder = model.encoder
    if encoder.query is None:
        raise ConfigError(
            "instruction_pooling.steps needs model.instruction_heads, which is 0. Set it to 4, or the steps to 0."
        )
    generator = random.Random(seed)
    tasks = []
    for number, task in enumerate(data.tasks.values(), start=1):
        tasks.append(_prepared(encoder, task, config.texts, generator))
        on_progress("data sets read", number, len(data.tasks))
    weights = [weight for part in _parts(encoder) for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARMUP, 1.0) * (1 - step / config.steps)
    )
    contrast = InstructionContrastiveLoss(model, temperature=temperature)
    step = _Step(generator, contrast, config.batch_size, attributes_per_step)
    losses: list[float] = []
    for number in range(1, config.steps + 1):
        loss = generator.choice(tasks).loss(encoder, step)
        if loss is None:
            continue
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        on_progress("steps of the instruction pooling", number, config.steps)
    encoder.store.clear()
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / max(len(last), 1)


def _prepared(encoder: DualEncoder, task: TaskData, count: int, generator: random.Random) -> _Corpus | _Pairs:
    if task.corpus is not None:
        return _Corpus(encoder, task.corpus, count, generator)
    return _Pairs(encoder, task, count // 2, generator)


def _parts(encoder: DualEncoder) -> tuple[InstructionPooling, InstructionQuery]:
    assert encoder.query is not None
    assert encoder.text_pooling is not None
    assert encoder.text_pooling.instructed is not None
    return encoder.text_pooling.instructed, encoder.query


@torch.no_grad()
def _frozen_states(encoder: DualEncoder, texts: Sequence[str]) -> tuple[_Texts, list[int]]:
    """Return the states of the texts that are not empty, and which texts these are."""
    assert encoder.text_pooling is not None
    pooling, _ = _parts(encoder)
    tokens, means, kept = [], [], []
    for states in encoder.text_states(texts):
        for own in states:
            kept.append(len(own) > 0)
            if kept[-1]:
                everywhere = torch.ones(1, len(own), dtype=torch.long, device=own.device)
                tokens.append(pooling.reduce(own.unsqueeze(0), everywhere)[0].bfloat16().cpu())
                means.append(encoder.text_pooling.whitened_mean(own.unsqueeze(0), everywhere)[0])
    return _Texts(tokens, torch.stack(means)), [row for row, present in enumerate(kept) if present]


def _tokens_by_instruction(encoder: DualEncoder, instructions: Sequence[str]) -> dict[str, RelaxedTokens]:
    distinct = list(dict.fromkeys(instructions))
    return dict(zip(distinct, _tokens(encoder, distinct), strict=True))


def _tokens(encoder: DualEncoder, instructions: Sequence[str]) -> list[RelaxedTokens]:
    """Generate the tokens of instructions, in batches of similar length."""
    named = list(map(encoder.instruction_of, instructions))
    order = sorted(range(len(named)), key=lambda row: len(named[row]))
    tokens: dict[int, RelaxedTokens] = {}
    for start in range(0, len(order), _INSTRUCTIONS):
        rows = order[start : start + _INSTRUCTIONS]
        tokens |= dict(zip(rows, encoder.generate_relaxed([named[row] for row in rows]), strict=True))
    return [tokens[row] for row in range(len(named))]
