"""Scores of several systems on the same tasks, with bootstrap intervals over the scored rows."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.stats import spearmanr

from promptembedder.errors import ConfigError
from promptembedder.evaluation.evaluators import bm25_similarities
from promptembedder.evaluation.tasks import EvaluationTask, LabelledTexts, ScoredPairs, SearchData
from promptembedder.model import Encoder
from promptembedder.types import Float

__all__ = ["BM25", "ComparedScore", "EncoderSystem", "compare_on_task"]

_RESAMPLES = 1000
_CUT = 10  # of nDCG
_METRICS = {
    "retrieval": "ndcg_at_10",
    "sts": "cosine_spearman",
    "pair_classification": "cosine_ap",
    "classification": "accuracy",
    "clustering": "v_measure",
}


@dataclass(frozen=True, kw_only=True)
class ComparedScore:
    """Score of a system on a task.

    Attributes:
        score: Score in 0..100.
        low: Lower end of the 95 % bootstrap interval over the rows: queries, pairs or texts.
        high: Upper end.
        texts: Number of texts that the system read.
        seconds: Time in which it read them.
    """

    task: str
    metric: str
    score: float
    low: float
    high: float
    rows: int
    texts: int
    seconds: float


@runtime_checkable
class System(Protocol):
    """System that ranks documents for queries."""

    texts: int
    seconds: float

    def similarities(self, task: EvaluationTask) -> Float[np.ndarray, "queries docs"]:
        """Compute the similarity of each query of a retrieval task to each document."""
        ...


class EncoderSystem:
    """Encoder of sentence-transformers, with or without instructions, that counts its texts and seconds."""

    def __init__(self, model: Encoder, *, takes_instructions: bool, batch_size: int = 64) -> None:
        """Wrap a loaded model."""
        self._model, self._takes_instructions, self._batch_size = model, takes_instructions, batch_size
        self.texts, self.seconds = 0, 0.0

    def encode(self, texts: Sequence[str], instruction: str | None) -> Float[np.ndarray, "texts dim"]:
        """Compute unit vectors."""
        start = time.perf_counter()
        vectors = self._model.encode(
            list(texts),
            prompt=instruction if self._takes_instructions else None,
            batch_size=self._batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        self.seconds += time.perf_counter() - start
        self.texts += len(texts)
        return np.asarray(vectors, dtype=np.float32)

    def similarities(self, task: EvaluationTask) -> Float[np.ndarray, "queries docs"]:
        """Compute cosines. Only the queries are encoded under the instruction, as in `evaluate`."""
        queries, documents = _search_texts(task)
        return self.encode(queries, task.instruction) @ self.encode(documents, None).T


class BM25:
    """Lexical baseline for retrieval: Lucene's variant with English stop words."""

    def __init__(self) -> None:
        """Start with no text read."""
        self.texts, self.seconds = 0, 0.0

    def similarities(self, task: EvaluationTask) -> Float[np.ndarray, "queries docs"]:
        """Compute BM25 scores."""
        queries, documents = _search_texts(task)
        start = time.perf_counter()
        scores = bm25_similarities(queries, documents)
        self.seconds += time.perf_counter() - start
        self.texts += len(queries) + len(documents)
        return scores


def compare_on_task(system: System, task: EvaluationTask, *, seed: int = 0) -> ComparedScore | None:
    """Score a system on a task, or return None if it cannot do the task: BM25 does retrieval only.

    A classifier is trained on all training rows, and k-means has as many clusters as there are labels, so that these
    scores differ from those of mteb's protocol.
    """
    texts, seconds = system.texts, system.seconds
    if isinstance(task.data, SearchData):
        statistic, rows = _ranking(task.data, system.similarities(task))
    elif isinstance(system, EncoderSystem):
        statistic, rows = _of_vectors(system, task, seed)
    else:
        return None
    draw = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may contain a single class or score: its statistic is NaN
        resampled = [statistic(draw.integers(0, rows, rows)) for _ in range(_RESAMPLES)]
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return ComparedScore(
        task=task.name,
        metric=_METRICS[task.type],
        score=100 * statistic(np.arange(rows)),
        low=100 * float(low),
        high=100 * float(high),
        rows=rows,
        texts=system.texts - texts,
        seconds=system.seconds - seconds,
    )


Statistic = Callable[[np.ndarray], float]


def _ranking(data: SearchData, similarities: Float[np.ndarray, "queries docs"]) -> tuple[Statistic, int]:
    """Return the mean nDCG@10 as a function of the rows of the queries, and their number."""
    names = list(data.documents)
    discounts = 1 / np.log2(np.arange(2, _CUT + 2))
    gains = []
    for query, scores in zip(data.queries, similarities, strict=True):
        grades = data.relevant[query]
        found = [grades.get(names[row], 0) for row in np.argsort(-scores, kind="stable")[:_CUT]]
        best = sorted(grades.values(), reverse=True)[:_CUT]
        gains.append(discounts[: len(found)] @ found / (discounts[: len(best)] @ best))
    values = np.array(gains)
    return lambda rows: float(values[rows].mean()), len(values)


def _of_vectors(system: EncoderSystem, task: EvaluationTask, seed: int) -> tuple[Statistic, int]:
    """Return the score of an encoder as a function of the scored rows, and their number."""
    from sklearn.cluster import KMeans  # slow imports that training does not need
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, v_measure_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, instruction = task.data, task.instruction
    if isinstance(data, ScoredPairs):
        cosines = (system.encode(data.first, instruction) * system.encode(data.second, instruction)).sum(axis=1)
        expected = np.array(data.scores)
        if task.type == "sts":
            return lambda rows: float(spearmanr(cosines[rows], expected[rows]).statistic), len(expected)
        return lambda rows: float(average_precision_score(expected[rows], cosines[rows])), len(expected)
    if not isinstance(data, LabelledTexts):
        raise ConfigError(f"{task.name} is not a task of pairs or labels. Compare on tasks of a task file.")
    labels = np.array([str(label) for label in data.labels])
    vectors = system.encode(data.texts, instruction)
    if task.type == "clustering":
        found = KMeans(len(set(labels)), n_init=10, random_state=seed).fit_predict(vectors)
        return lambda rows: float(v_measure_score(labels[rows], found[rows])), len(labels)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(system.encode(data.train_texts, instruction), [str(label) for label in data.train_labels])
    right = classifier.predict(vectors) == labels
    return lambda rows: float(right[rows].mean()), len(labels)


def _search_texts(task: EvaluationTask) -> tuple[list[str], list[str]]:
    assert isinstance(task.data, SearchData)
    documents = [f"{title} {text}".strip() for title, text in task.data.documents.values()]
    return list(task.data.queries.values()), documents
