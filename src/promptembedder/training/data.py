"""Training data: tasks, checks of their data, their batches and the collator."""

import dataclasses
import logging
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from promptembedder.backbone import hub_refusal
from promptembedder.data import (
    Attribute,
    LabelledCorpus,
    Pair,
    add_other_answers,
    build_datasets,
    read_labelled_corpora,
    read_mixture,
    read_pairs,
)
from promptembedder.errors import ConfigError, DataError
from promptembedder.method import RowInstructions
from promptembedder.training.distributed import Ranks, init_distributed
from promptembedder.training.recipe import ANY_COLUMNS, DataConfig

__all__ = [
    "InstructionCollator",
    "InstructionVariants",
    "TaskData",
    "TrainingData",
    "build_task_data",
    "load_training_data",
    "log_data_warnings",
]

logger = logging.getLogger(__name__)

_MAX_PAIRS_PER_TEXT = 5  # on average; labels repeat more often


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Data set of one task, whose rows have the same columns, with its instruction variants.

    Attributes:
        in_batch_negatives: True if the positives of other rows are negatives.
        corpus: Labelled corpus of the task, whose rows are pairs with the same label in some attribute. If None, the
            task has pairs only.
        unseen_instructions: Instruction variants that are not used in training.
    """

    train: Dataset
    held_out: Dataset | None
    instructions: tuple[str, ...]
    document_instructions: tuple[str, ...]
    in_batch_negatives: bool
    unseen_instructions: tuple[str, ...] = ()
    corpus: LabelledCorpus | None = None

    @property
    def instruction_groups(self) -> tuple[tuple[str, ...], ...]:
        """Instruction variants of the same meaning: of queries and documents, or of each attribute of a corpus."""
        if self.corpus is not None:
            return tuple(attribute.instructions for attribute in self.corpus.attributes)
        return self.instructions, self.document_instructions


@dataclass(frozen=True)
class TrainingData:
    """Training data of all tasks, by the task's name."""

    tasks: dict[str, TaskData]

    @property
    def train(self) -> DatasetDict:
        """Training rows of each task."""
        return DatasetDict({name: task.train for name, task in self.tasks.items()})

    @property
    def held_out(self) -> DatasetDict | None:
        """Held-out rows of each task. None if no task has any."""
        parts = {name: task.held_out for name, task in self.tasks.items() if task.held_out is not None}
        return DatasetDict(parts) if parts else None

    @property
    def pair_count(self) -> int:
        """Number of training rows of all tasks."""
        return sum(len(task.train) for task in self.tasks.values())

    @property
    def instructions(self) -> list[str]:
        """All instruction variants of all tasks, of queries and documents, seen in training or not."""
        tasks = self.tasks.values()
        sides = [side for task in tasks for side in (task.instructions, task.document_instructions)]
        unseen = [task.unseen_instructions for task in tasks]
        return list(dict.fromkeys(wording for side in [*sides, *unseen] for wording in side))

    def sample_texts(self, count: int, *, seed: int) -> list[str]:
        """Sample about `count` training texts, anchors and positives, in equal shares from all tasks."""
        share = max(count // (2 * len(self.tasks)), 1)
        texts: list[str] = []
        for task in self.tasks.values():
            rows = range(len(task.train))
            chosen = task.train.select(sorted(random.Random(seed).sample(rows, min(share, len(rows)))))
            texts += [*chosen["anchor"], *chosen["positive"]]
        return texts


def load_training_data(config: DataConfig, *, seed: int) -> TrainingData:
    """Load the tasks that `config` names.

    Raises:
        ConfigError: If no source is named, or a task is unknown.
        DataError: If a file is missing, empty or malformed.
    """
    corpora = _load_corpora(config, seed)
    pairs = _load_pair_tasks(config, seed)
    taken = sorted(corpora.keys() & pairs.keys())
    if taken:
        raise ConfigError(f"a task and a labelled corpus have the name {taken[0]!r}. Rename one of them.")
    if not corpora and not pairs:
        raise ConfigError("data names no source. Set data.mixture, data.pairs, data.hub or data.corpora.")
    return TrainingData({**pairs, **corpora})


def _load_pair_tasks(config: DataConfig, seed: int) -> dict[str, TaskData]:
    if config.mixture is not None:
        return _load_mixture(config, seed)
    if config.pairs is not None:
        path = Path(config.pairs)
        name = path.name.split(".")[0] or "pairs"
        return _build_single_task(_load_file_pairs(path, config, seed), name, config, seed)
    if config.hub is not None:
        return _build_single_task(_load_hub_pairs(config, seed), Path(config.hub).name or "pairs", config, seed)
    return {}


def _load_corpora(config: DataConfig, seed: int) -> dict[str, TaskData]:
    if config.corpora is None:
        return {}
    tasks = {}
    for corpus in read_labelled_corpora(Path(config.corpora), names=config.corpus_names):
        unseen = tuple(
            one for attribute in corpus.attributes for one in _split_variants(attribute, config.held_out_variants)[1]
        )
        seen = tuple(
            dataclasses.replace(attribute, instructions=_split_variants(attribute, config.held_out_variants)[0])
            for attribute in corpus.attributes
        )
        corpus = dataclasses.replace(corpus, attributes=seen)
        pairs = [Pair(*pair) for pair in corpus.draw_pairs(seed=seed, limit=config.limit)]
        if not pairs:
            raise DataError(f"no two texts of the corpus {corpus.name!r} have the same label. Add rows.")
        tasks[corpus.name] = TaskData(
            train=build_datasets(pairs, corpus.name)[corpus.name],
            held_out=None,
            instructions=tuple(one for attribute in seen for one in attribute.instructions),
            document_instructions=(),
            in_batch_negatives=False,
            unseen_instructions=unseen,
            corpus=corpus,
        )
    return tasks


def _split_variants(attribute: Attribute, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the instructions of an attribute into those used in training and the last `count` of them."""
    if count >= len(attribute.instructions):
        raise ConfigError(
            f"data.held_out_variants is {count}, attribute {attribute.name!r} has {len(attribute.instructions)} "
            "instructions: none is left to train on."
        )
    seen = len(attribute.instructions) - count
    return attribute.instructions[:seen], attribute.instructions[seen:]


def build_task_data(
    pairs: Sequence[Pair],
    name: str,
    *,
    instructions: Sequence[str],
    document_instructions: Sequence[str] = (),
    in_batch_negatives: bool = True,
    held_out: int = 0,
    seed: int = 0,
) -> dict[str, TaskData]:
    """Build the data set of a task, or two data sets if only some rows have a negative.

    Raises:
        DataError: If rows without in-batch negatives lack an explicit negative, or no row is left to train on.
    """
    order = list(pairs)
    random.Random(seed).shuffle(order)
    held_out_pairs, train = order[:held_out], order[held_out:]
    if not train:
        raise DataError(f"task {name!r} has {len(order)} rows and holds out {held_out}: none is left to train on.")
    if not in_batch_negatives and not all(pair.negative for pair in order):
        raise DataError(f"task {name!r} has rows without `negative` and no in-batch negatives. Add negatives.")
    held_out_parts = build_datasets(held_out_pairs, name) if held_out_pairs else {}
    return {
        part: TaskData(
            train=rows,
            held_out=held_out_parts.get(part),
            instructions=tuple(instructions),
            document_instructions=tuple(document_instructions),
            in_batch_negatives=in_batch_negatives,
        )
        for part, rows in build_datasets(train, name).items()
    }


def _load_mixture(config: DataConfig, seed: int) -> dict[str, TaskData]:
    assert config.mixture is not None
    listed = read_mixture(Path(config.mixture))
    unknown = sorted(set(config.tasks) - {task.name for task in listed})
    if unknown:
        known = ", ".join(task.name for task in listed)
        raise ConfigError(f"the mixture has no task {unknown[0]!r}. It has: {known}.")
    tasks: dict[str, TaskData] = {}
    for task in listed:
        if config.tasks and task.name not in config.tasks:
            continue
        parts = build_task_data(
            _load_file_pairs(task.file, config, seed, columns=task.columns, instruction_column=task.instruction_column),
            task.name,
            instructions=task.instructions,
            document_instructions=task.document_instructions,
            in_batch_negatives=task.in_batch_negatives,
            held_out=config.held_out,
            seed=seed,
        )
        tasks |= {name: _hold_out_variants(part, config.held_out_variants, name) for name, part in parts.items()}
    return tasks


def _hold_out_variants(task: TaskData, count: int, name: str) -> TaskData:
    """Return the task with its last `count` instruction variants moved to the unseen ones."""
    if count == 0:
        return task
    if count >= len(task.instructions):
        raise ConfigError(
            f"data.held_out_variants is {count}, task {name!r} has {len(task.instructions)}: none is left to train on."
        )
    symmetric = task.document_instructions == task.instructions
    return dataclasses.replace(
        task,
        instructions=task.instructions[:-count],
        document_instructions=task.document_instructions[:-count] if symmetric else task.document_instructions,
        unseen_instructions=task.instructions[-count:],
    )


def _load_file_pairs(
    path: Path, config: DataConfig, seed: int, *, columns: Sequence[str] = (), instruction_column: str | None = None
) -> list[Pair]:
    """Read the pairs of a file and subsample them, once negatives are added or required."""
    if config.pairs is not None and config.columns != ANY_COLUMNS:
        columns = config.columns
    instruction_column = instruction_column or config.instruction_column
    whole = config.require_negative or instruction_column is not None
    pairs = read_pairs(
        path,
        limit=None if whole else config.limit,
        seed=seed,
        columns=columns,
        instruction_column=instruction_column,
        delimiter=config.delimiter,
        encoding=config.encoding,
    ).pairs
    pairs = add_other_answers(pairs, seed=seed)
    if config.require_negative:
        pairs = [pair for pair in pairs if pair.negative]
        if not pairs:
            raise DataError(f"{path} has no row with a `negative`. Set data.require_negative to false.")
    if config.limit is not None and config.limit < len(pairs):
        rows = sorted(random.Random(seed).sample(range(len(pairs)), config.limit))
        pairs = [pairs[row] for row in rows]
    return pairs


def _build_single_task(pairs: Sequence[Pair], name: str, config: DataConfig, seed: int) -> dict[str, TaskData]:
    return build_task_data(
        pairs,
        name,
        instructions=config.instructions,
        document_instructions=config.document_instructions,
        in_batch_negatives=config.in_batch_negatives,
        held_out=config.held_out,
        seed=seed,
    )


def _load_hub_pairs(config: DataConfig, seed: int) -> list[Pair]:
    assert config.hub is not None
    try:
        rows = load_dataset(config.hub, config.hub_subset, split=config.hub_split)
    except (OSError, ValueError) as error:
        refusal = hub_refusal(config.hub, error, instead="a file of pairs (data.pairs)")
        reason = refusal or str(error).splitlines()[0]
        raise DataError(f"cannot load data set {config.hub!r}: {reason}") from error
    own = config.instruction_column
    if own is None and "instruction" in rows.column_names and "instruction" not in config.columns:
        own = "instruction"
    needed = [*config.columns, *([] if own is None else [own])]
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise DataError(
            f"data set {config.hub!r} has no column {missing[0]!r}. It has: {', '.join(rows.column_names)}."
        )
    if config.limit is not None and config.limit < len(rows):
        rows = rows.shuffle(seed=seed).select(range(config.limit))
    pairs = [Pair(*values) for values in zip(*(rows[column] for column in config.columns), strict=True)]
    if own is None:
        return pairs
    pairs = [dataclasses.replace(pair, instruction=one) for pair, one in zip(pairs, rows[own], strict=True)]
    return add_other_answers(pairs, seed=seed)


def log_data_warnings(data: TrainingData) -> None:
    """Log what makes the tasks of pairs train badly, on the first process only.

    Raises:
        DataError: If all pairs of a task have the same query or the same text, so that no row has a negative.
    """
    warnings = [line for name, task in data.tasks.items() if task.corpus is None for line in _warnings(name, task)]
    if init_distributed().is_first:
        for line in warnings:
            logger.warning(line)


def _warnings(name: str, task: TaskData) -> Iterator[str]:
    columns = [list(task.train[column]) for column in task.train.column_names]
    rows, distinct = len(columns[0]), len(set(zip(*columns, strict=True)))
    queries, texts = len(set(columns[0])), len(set(columns[1]))
    if len(columns) == 2 and min(queries, texts) < 2:
        kind = "query" if queries < 2 else "text"
        raise DataError(
            f"task {name!r} has one distinct {kind} in {rows} {'pair' if rows == 1 else 'pairs'}, so that no row has a "
            "negative. Add other pairs."
        )
    if distinct < rows:
        yield f"task {name!r} repeats {rows - distinct} of its {rows} pairs. Remove the repeated ones."
    if len(columns) == 2 and rows >= _MAX_PAIRS_PER_TEXT * texts:
        yield (
            f"the {rows} pairs of task {name!r} have only {texts} distinct texts, as labels have. A batch contains a "
            f"text once, thus at most {texts} rows. Train on labels as a labelled corpus (data.corpora)."
        )
    if not task.instructions and "instruction" not in task.train.column_names:
        yield (
            f"task {name!r} has no instruction: queries are embedded as documents are. Give one with --instruction "
            "(data.instructions)."
        )


@dataclass(frozen=True)
class InstructionVariants:
    """Instruction variants of a task's anchors and documents. If empty, the model's default instruction is used."""

    anchor: tuple[str, ...]
    document: tuple[str, ...]


@dataclass
class InstructionCollator(SentenceTransformerDataCollator):
    """Collator that draws instruction variants from a hash of the batch's rows and the seed.

    The draw for a batch does not depend on earlier batches, because a resumed run skips those without collating them
    and must draw the same variants. With several processes, each receives the joint batch, draws the same variants, and
    keeps its share of the rows. The key `all_gather_with_grad` then contains the number of rows of the joint batch.
    """

    variants: dict[str, InstructionVariants] = field(default_factory=dict)
    corpora: dict[str, LabelledCorpus] = field(default_factory=dict)
    attributes_per_step: int = 3
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    _drawn: dict[str, str | RowInstructions] = field(default_factory=dict, init=False, repr=False)
    _labels: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Tokenize the batch's columns, each with its instruction."""
        if features and features[0].get("dataset_name") in self.corpora:
            return self._collate_corpus(features)
        if features:
            self._drawn = self._draw(features)
        return self._collate_share(features)

    def _collate_share(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if self.ranks.world_size == 1:
            return self._collate_rows(features)
        # an empty share gets a placeholder row, because every process has to run the same collectives
        local = features[self.ranks.shares(len(features))[self.ranks.rank]] or features[:1]
        return {**self._collate_rows(local), "all_gather_with_grad": len(features)}

    def _collate_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Tokenize the columns of the rows, the anchors each under its own instruction if the rows have one."""
        if not rows or "instruction" not in rows[0]:
            return super().__call__(rows)
        self._drawn = {**self._drawn, "anchor": RowInstructions(row["instruction"] for row in rows)}
        return super().__call__([{name: row[name] for name in row if name != "instruction"} for row in rows])

    def _collate_corpus(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate the distinct texts of the pairs once for each drawn attribute, with their labels [texts attributes].

        Only attributes are drawn for which the batch contains two texts with the same label and two that differ.
        """
        name = features[0]["dataset_name"]
        corpus = self.corpora[name]
        texts = list(dict.fromkeys(row[column] for row in features for column in ("anchor", "positive")))
        by_text = self._labels.setdefault(name, corpus.labels_by_text())
        labels = [by_text[text] for text in texts]
        generator = self._generator(texts)
        usable = labels_with_contrast(labels)
        drawn = sorted(generator.sample(usable, min(self.attributes_per_step, len(usable)))) or [0]
        columns = [f"view{view}" for view in range(len(drawn))]
        instructions = [generator.choice(corpus.attributes[number].instructions) for number in drawn]
        self._drawn = dict(zip(columns, instructions, strict=True))
        rows = [{**dict.fromkeys(columns, text), "dataset_name": name} for text in texts]
        joint = torch.tensor([[row[number] for number in drawn] for row in labels])
        return {**self._collate_share(rows), "label": joint}

    def _generator(self, texts: Sequence[str]) -> random.Random:
        digest = zlib.crc32("\x00".join(texts).encode("utf-8", "replace"))
        return random.Random(f"{self.seed}-{digest}")

    def _draw(self, features: list[dict[str, Any]]) -> dict[str, str | RowInstructions]:
        variants = self.variants.get(features[0].get("dataset_name", ""))
        if variants is None:
            return {}
        generator = self._generator([str(row["anchor"]) for row in features])
        anchor = generator.choice(variants.anchor) if variants.anchor else None
        if variants.document == variants.anchor:  # symmetric task: both sides get the same variant
            document = anchor
        else:
            document = generator.choice(variants.document) if variants.document else None
        columns = [column for column in features[0] if column not in ("dataset_name", "instruction")]
        drawn = {column: anchor if column == "anchor" else document for column in columns}
        return {column: variant for column, variant in drawn.items() if variant is not None}

    def _resolve_prompts(self, batch: dict[str, Any]) -> Any:
        return self._drawn


def labels_with_contrast(labels: Sequence[Sequence[int]]) -> list[int]:
    """Return the columns of [texts attributes] labels in which two texts agree and two differ. -1 is no label."""
    return [number for number in range(len(labels[0])) if _has_contrast([row[number] for row in labels])]


def _has_contrast(codes: Sequence[int]) -> bool:
    """Return True if two of the labels are equal and two differ. -1 is no label."""
    counts = Counter(code for code in codes if code >= 0)
    return len(counts) > 1 and max(counts.values()) > 1
