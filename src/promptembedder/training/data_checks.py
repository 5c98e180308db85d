"""Checks of training data: what cannot be trained on, and what trains without learning much."""

import logging
from collections.abc import Iterator

from promptembedder.errors import DataError
from promptembedder.training.data import TaskData, TrainingData
from promptembedder.training.distributed import init_distributed

__all__ = ["log_data_warnings"]

logger = logging.getLogger(__name__)

_MAX_PAIRS_PER_TEXT = 5  # on average; labels repeat more often


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
    if not task.instructions:
        yield (
            f"task {name!r} has no instruction: queries are embedded as documents are. Give one with --instruction "
            "(data.instructions)."
        )
