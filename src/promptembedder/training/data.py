"""Training data: tasks, their batches and the collator."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from datasets import Dataset, DatasetDict, load_dataset
from promptembedder.backbone import hub_refusal
from promptembedder.data import Pair, datasets_of, read_mixture, read_pairs
from promptembedder.errors import ConfigError, DataError
from promptembedder.training.recipe import ANY_COLUMNS, DataConfig
import zlib
from dataclasses import dataclass, field
from typing import Any
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from promptembedder.training.distributed import Ranks

__all__ = ['InstructionCollator', 'TaskData', 'TrainingData', 'Wordings', 'load_training_data', 'task_data']

@dataclass(frozen=True, kw_only=True)
class TaskData:
    """One data set of the mixture: rows of one shape, wordings, and whether other rows are negatives.

    Attributes:
        unseen_instructions: Wordings that are kept from training.
    """

    train: Dataset
    held_out: Dataset | None
    instructions: tuple[str, ...]
    document_instructions: tuple[str, ...]
    in_batch_negatives: bool
    unseen_instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """All tasks by name."""

    tasks: dict[str, TaskData]

    @property
    def train(self) -> DatasetDict:
        """Training rows by task."""
        return DatasetDict({name: task.train for name, task in self.tasks.items()})

    @property
    def held_out(self) -> DatasetDict | None:
        """Held-out rows by task; None if nothing was held out."""
        kept = {name: task.held_out for name, task in self.tasks.items() if task.held_out is not None}
        return DatasetDict(kept) if kept else None

    @property
    def pair_count(self) -> int:
        """Training rows of all tasks."""
        return sum(len(task.train) for task in self.tasks.values())

    @property
    def instructions(self) -> list[str]:
        """All wordings of all tasks, of queries and documents, kept from training or not."""
        tasks = self.tasks.values()
        sides = [side for task in tasks for side in (task.instructions, task.document_instructions)]
        unseen = [task.unseen_instructions for task in tasks]
        return list(dict.fromkeys(wording for side in [*sides, *unseen] for wording in side))

    def sampled_texts(self, count: int, *, seed: int) -> list[str]:
        """About `count` training texts, anchors and positives, as many of each task as it has and as there is room."""
        share = max(count // (2 * len(self.tasks)), 1)
        texts: list[str] = []
        for task in self.tasks.values():
            rows = range(len(task.train))
            chosen = task.train.select(sorted(random.Random(seed).sample(rows, min(share, len(rows)))))
            texts += [*chosen["anchor"], *chosen["positive"]]
        return texts


def load_training_data(config: DataConfig, *, seed: int) -> TrainingData:
    """The tasks that `config` names.

    Raises:
        ConfigError: No source is named, or a task is unknown.
        DataError: A file is missing, empty or malformed.
    """
    if config.mixture is not None:
        return TrainingData(_mixture_tasks(config, seed))
    if config.pairs is not None:
        path = Path(config.pairs)
        return TrainingData(_own_task(_file_pairs(path, config, seed), path.name.split(".")[0], config, seed))
    if config.hub is not None:
        return TrainingData(_own_task(_hub_pairs(config, seed), Path(config.hub).name, config, seed))
    raise ConfigError("data names no source. Set data.mixture, data.pairs or data.hub.")


def task_data(
    pairs: Sequence[Pair],
    name: str,
    *,
    instructions: Sequence[str],
    document_instructions: Sequence[str] = (),
    in_batch_negatives: bool = True,
    held_out: int = 0,
    seed: int = 0,
) -> dict[str, TaskData]:
    """One task as one data set, or two where only some rows have a negative.

    Raises:
        DataError: Rows of label data lack the negatives that they need, or none is left to train on.
    """
    order = list(pairs)
    random.Random(seed).shuffle(order)
    kept, train = order[:held_out], order[held_out:]
    if not train:
        raise DataError(f"task {name!r} has {len(order)} rows and holds out {held_out}: none is left to train on.")
    if not in_batch_negatives and not all(pair.negative for pair in order):
        raise DataError(f"task {name!r} has rows without `negative` and no in-batch negatives. Add negatives.")
    kept_parts = datasets_of(kept, name) if kept else {}
    return {
        part: TaskData(
            train=rows,
            held_out=kept_parts.get(part),
            instructions=tuple(instructions),
            document_instructions=tuple(document_instructions),
            in_batch_negatives=in_batch_negatives,
        )
        for part, rows in datasets_of(train, name).items()
    }


def _mixture_tasks(config: DataConfig, seed: int) -> dict[str, TaskData]:
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
        parts = task_data(
            _file_pairs(task.file, config, seed),
            task.name,
            instructions=task.instructions,
            document_instructions=task.document_instructions,
            in_batch_negatives=task.in_batch_negatives,
            held_out=config.held_out,
            seed=seed,
        )
        tasks |= {name: _without_last_wordings(part, config.held_out_wordings, name) for name, part in parts.items()}
    return tasks


def _without_last_wordings(task: TaskData, count: int, name: str) -> TaskData:
    """The task with its last wordings kept from training."""
    if count == 0:
        return task
    if count >= len(task.instructions):
        raise ConfigError(
            f"data.held_out_wordings is {count}, task {name!r} has {len(task.instructions)}: none is left to train on."
        )
    symmetric = task.document_instructions == task.instructions
    return dataclasses.replace(
        task,
        instructions=task.instructions[:-count],
        document_instructions=task.document_instructions[:-count] if symmetric else task.document_instructions,
        unseen_instructions=task.instructions[-count:],
    )


def _file_pairs(path: Path, config: DataConfig, seed: int) -> list[Pair]:
    """The rows of one file, subsampled after those without a negative are out."""
    columns = () if config.columns == ANY_COLUMNS or config.pairs is None else config.columns
    if not config.require_negative:
        return read_pairs(path, limit=config.limit, seed=seed, columns=columns).pairs
    pairs = [pair for pair in read_pairs(path, columns=columns).pairs if pair.negative]
    if not pairs:
        raise DataError(f"{path} has no row with a `negative`. Set data.require_negative to false.")
    if config.limit is not None and config.limit < len(pairs):
        kept = sorted(random.Random(seed).sample(range(len(pairs)), config.limit))
        pairs = [pairs[row] for row in kept]
    return pairs


def _own_task(pairs: Sequence[Pair], name: str, config: DataConfig, seed: int) -> dict[str, TaskData]:
    return task_data(
        pairs,
        name,
        instructions=config.instructions,
        document_instructions=config.document_instructions,
        in_batch_negatives=config.in_batch_negatives,
        held_out=config.held_out,
        seed=seed,
    )


def _hub_pairs(config: DataConfig, seed: int) -> list[Pair]:
    assert config.hub is not None
    try:
        rows = load_dataset(config.hub, config.hub_subset, split=config.hub_split)
    except (OSError, ValueError) as error:
        refusal = hub_refusal(config.hub, error, instead="a file of pairs (data.pairs)")
        reason = refusal or str(error).splitlines()[0]
        raise DataError(f"cannot load data set {config.hub!r}: {reason}") from error
    missing = [column for column in config.columns if column not in rows.column_names]
    if missing:
        raise DataError(
            f"data set {config.hub!r} has no column {missing[0]!r}. It has: {', '.join(rows.column_names)}."
        )
    if config.limit is not None and config.limit < len(rows):
        rows = rows.shuffle(seed=seed).select(range(config.limit))
    return [Pair(*values) for values in zip(*(rows[column] for column in config.columns), strict=True)]


@dataclass(frozen=True)
class Wordings:
    """Ways to say a task's instruction; documents without any get the model's default."""

    anchor: tuple[str, ...]
    document: tuple[str, ...]


@dataclass
class InstructionCollator(SentenceTransformerDataCollator):
    """Draws wordings from the batch's own rows and the seed, not from a running generator.

    So the draw of a batch does not depend on the batches before it: a run that resumes after a kill skips those
    without collating them, and must still draw the same. Of several processes each is given the joint batch, draws
    what the others draw, and keeps its share of the rows; `joint_rows` then says how many all have together.
    """

    wordings: dict[str, Wordings] = field(default_factory=dict)
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    _drawn: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch's columns as features, each with its instruction."""
        if features:
            self._drawn = self._draw(features)
        if self.ranks.count == 1:
            return super().__call__(features)
        # an empty share gets a row to stand in: every process has to do the same work
        own = features[self.ranks.shares(len(features))[self.ranks.own]] or features[:1]
        return {**super().__call__(own), "joint_rows": len(features)}

    def _draw(self, features: list[dict[str, Any]]) -> dict[str, str]:
        wordings = self.wordings.get(features[0].get("dataset_name", ""))
        if wordings is None:
            return {}
        digest = zlib.crc32("\x00".join(str(row["anchor"]) for row in features).encode("utf-8", "replace"))
        generator = random.Random(f"{self.seed}-{digest}")
        anchor = generator.choice(wordings.anchor) if wordings.anchor else None
        if wordings.document == wordings.anchor:  # a symmetric task: both sides are read under the same words
            document = anchor
        else:
            document = generator.choice(wordings.document) if wordings.document else None
        columns = [column for column in features[0] if column != "dataset_name"]
        drawn = {column: anchor if column == "anchor" else document for column in columns}
        return {column: words for column, words in drawn.items() if words is not None}

    def _resolve_prompts(self, batch: dict[str, Any]) -> str | dict[str, str] | None:
        return self._drawn
