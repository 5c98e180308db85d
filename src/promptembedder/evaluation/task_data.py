"""Data of an evaluation task: texts with labels, complete or a seeded sample."""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeVar

from promptembedder.errors import DataError

__all__ = ["METRICS", "EvaluationTask", "LabelledTexts", "ScoredPairs", "SearchData", "TaskType", "subsample"]

TaskType = Literal["sts", "classification", "pair_classification", "clustering", "retrieval"]

_DOCUMENTS_PER_QUERY = 10
# mteb trains each of its ten classifiers on 8 (one task: 32) rows per label; these leave twice as many to draw from
_TRAIN_ROWS_PER_LABEL = (16, 64)

_CUTS = (1, 3, 5, 10, 20, 100, 1000)

# the metrics of mteb by type
METRICS: dict[TaskType, tuple[str, ...]] = {
    "sts": tuple(
        f"{way}{kind}" for way in ("cosine_", "euclidean_", "manhattan_", "") for kind in ("spearman", "pearson")
    ),
    "classification": (
        *("accuracy", "f1", "f1_weighted", "precision", "precision_weighted", "recall", "recall_weighted"),
        *("ap", "ap_weighted"),
    ),
    "pair_classification": tuple(
        f"{way}_{kind}"
        for way in ("cosine", "similarity", "dot", "euclidean", "manhattan", "max")
        for kind in ("ap", "accuracy", "f1", "precision", "recall")
    ),
    "clustering": ("v_measure", "ami"),
    "retrieval": tuple(
        f"{kind}_at_{cut}" for kind in ("ndcg", "map", "recall", "precision", "mrr", "hit_rate") for cut in _CUTS
    ),
}

Item = TypeVar("Item")


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with similarity scores, or with 1 for similar and 0 for not."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class LabelledTexts:
    """Labelled texts. Only classification tasks have training texts."""

    texts: tuple[str, ...]
    labels: tuple[Hashable, ...]
    train_texts: tuple[str, ...] = ()
    train_labels: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class SearchData:
    """Queries, documents as (title, text), and the grades of the relevant documents of each query."""

    queries: dict[str, str]
    documents: dict[str, tuple[str, str]]
    relevant: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Task that can be scored offline.

    Args:
        paraphrases: Other wordings of the instruction.
        rows: Number of pairs, texts or queries in the complete set; `data` contains `rows_used` of them.
        documents: Number of documents of the complete corpus. 0 if not retrieval.
        limit: Limit of `subsample`. None for a complete task.
        mteb_name: mteb task with the same data, whose classifier settings are used.
        files: Files of the data.
    """

    name: str
    type: TaskType
    metric: str
    instruction: str
    data: ScoredPairs | LabelledTexts | SearchData
    rows: int
    documents: int = 0
    paraphrases: tuple[str, ...] = ()
    limit: int | None = None
    seed: int | None = None
    mteb_name: str | None = None
    files: tuple[Path, ...] = ()

    @property
    def rows_used(self) -> int:
        """Number of scored pairs, texts or queries."""
        match self.data:
            case ScoredPairs(first=texts) | LabelledTexts(texts=texts):
                return len(texts)
            case SearchData(queries=queries):
                return len(queries)

    @property
    def documents_used(self) -> int:
        """Number of searched documents."""
        return len(self.data.documents) if isinstance(self.data, SearchData) else 0


def subsample(task: EvaluationTask, limit: int, *, seed: int = 0) -> EvaluationTask:
    """Draw `limit` pairs, texts or queries of a task with `seed`. A smaller limit draws a subset.

    Retrieval keeps every document relevant to a drawn query and adds others up to ten documents per query.
    Classification keeps between 16 and 64 training texts per label, so that mteb's experiments draw different ones.

    Raises:
        DataError: The task has fewer than `limit` rows, or all drawn rows have the same label.
    """
    if limit > task.rows:
        raise DataError(f"limit {limit} is more than {task.name} has: {task.rows} rows. Set a limit of {task.rows}.")
    if limit < 2:
        raise DataError(f"limit must be 2 or more, got {limit}.")
    part: ScoredPairs | LabelledTexts | SearchData
    match task.data:
        case ScoredPairs() as pairs:
            rows = _draw(range(len(pairs.first)), limit, seed)
            part = ScoredPairs(_select(pairs.first, rows), _select(pairs.second, rows), _select(pairs.scores, rows))
        case LabelledTexts() as texts:
            part = _sample_texts(texts, limit, seed)
        case SearchData() as search:
            part = _sample_search(search, limit, seed)
    _check_varied(task, part)
    return replace(task, data=part, limit=limit, seed=seed)


def _check_varied(task: EvaluationTask, part: ScoredPairs | LabelledTexts | SearchData) -> None:
    match part:
        case ScoredPairs(scores=values) | LabelledTexts(labels=values):
            if task.type != "classification" and len(set(values)) < 2:
                raise DataError(
                    f"{task.name}: all {len(values)} rows drawn have the same label or score, {values[0]!r}. "
                    "Raise the limit, or change the seed."
                )
        case SearchData():
            pass


def _sample_texts(data: LabelledTexts, limit: int, seed: int) -> LabelledTexts:
    rows = _draw(range(len(data.texts)), limit, seed)
    labels = len(set(data.train_labels))
    least, most = _TRAIN_ROWS_PER_LABEL
    per_label = min(max(2 * limit // max(labels, 1), least), most)
    by_label = sorted(range(len(data.train_labels)), key=lambda row: str(data.train_labels[row]))
    train = sorted(
        row
        for _, group in groupby(by_label, key=lambda row: data.train_labels[row])
        for row in _draw(list(group), per_label, seed)
    )
    return LabelledTexts(
        _select(data.texts, rows),
        _select(data.labels, rows),
        _select(data.train_texts, train),
        _select(data.train_labels, train),
    )


def _sample_search(data: SearchData, limit: int, seed: int) -> SearchData:
    queries = set(_draw(list(data.queries), limit, seed))
    kept = {document for query in queries for document in data.relevant[query]}
    others = [document for document in data.documents if document not in kept]
    kept.update(_draw(others, max(0, _DOCUMENTS_PER_QUERY * limit - len(kept)), seed))
    return SearchData(
        {query: text for query, text in data.queries.items() if query in queries},
        {name: document for name, document in data.documents.items() if name in kept},
        {query: grades for query, grades in data.relevant.items() if query in queries},
    )


def _draw(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Return the first `count` items of a shuffled order, in their original order."""
    rows = list(range(len(items)))
    random.Random(seed).shuffle(rows)
    return [items[row] for row in sorted(rows[:count])]


def _select(column: tuple[Item, ...], rows: Sequence[int]) -> tuple[Item, ...]:
    return tuple(column[row] for row in rows)
