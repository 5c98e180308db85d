"""Laws of comparisons: scores are those of the usual definitions, and intervals contain them."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from promptembedder.evaluation import BM25, EncoderSystem, EvaluationTask, compare_on_task
from promptembedder.evaluation.tasks import LabelledTexts, ScoredPairs, SearchData

WORDS = ("red", "green", "blue", "cold", "warm", "fast")


class WordCounts:
    """Encoder that counts words, without instructions: its scores are known."""

    def encode(self, texts: list[str], *, prompt: str | None, normalize_embeddings: bool, **_: object) -> np.ndarray:
        assert prompt is None and normalize_embeddings
        counts = np.array([[text.split().count(word) + 0.01 for word in WORDS] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def system() -> EncoderSystem:
    return EncoderSystem(WordCounts(), takes_instructions=False)


def search_task() -> EvaluationTask:
    # different counts, so that no two documents with the word have the same similarity
    documents = {str(i): ("", f"{WORDS[i % 6]} " * (2 + i // 6) + WORDS[(i + 1) % 6]) for i in range(12)}
    queries = {f"q{i}": WORDS[i] for i in range(4)}
    relevant = {f"q{i}": {str(i): 2, str(i + 6): 1} for i in range(4)}
    data = SearchData(queries, documents, relevant)
    return EvaluationTask(name="s", type="retrieval", metric="ndcg_at_10", instruction="Find", data=data, rows=4)


def test_ndcg_is_that_of_scikit_learn(system: EncoderSystem) -> None:
    task = search_task()
    score = compare_on_task(system, task)
    similarities = system.similarities(task)
    grades = np.array([[task.data.relevant[q].get(d, 0) for d in task.data.documents] for q in task.data.queries])
    assert score.score == pytest.approx(100 * ndcg_score(grades, similarities, k=10), abs=1e-3)
    assert score.low <= score.score <= score.high
    assert (score.rows, score.texts) == (4, 16)


def test_bm25_finds_the_documents_with_the_word_and_does_retrieval_alone() -> None:
    task = search_task()
    similarities = BM25().similarities(task)
    for query, scores in zip(task.data.queries.values(), similarities, strict=True):
        assert [query in text for _, text in task.data.documents.values()] == list(scores > 0)
    pairs = EvaluationTask(
        name="p",
        type="sts",
        metric="cosine_spearman",
        instruction="x",
        data=ScoredPairs(("a",), ("b",), (1.0,)),
        rows=1,
    )
    assert compare_on_task(BM25(), pairs) is None


def test_scores_of_pairs_and_labels_are_the_usual_ones(system: EncoderSystem) -> None:
    first = tuple(f"{WORDS[i % 6]} {WORDS[i % 5]}" for i in range(20))
    second = tuple(f"{WORDS[i % 4]} {WORDS[i % 6]}" for i in range(20))
    expected = tuple(float(i % 7) for i in range(20))
    pairs = EvaluationTask(
        name="p",
        type="sts",
        metric="cosine_spearman",
        instruction="x",
        data=ScoredPairs(first, second, expected),
        rows=20,
    )
    cosines = (system.encode(first, None) * system.encode(second, None)).sum(axis=1)
    assert compare_on_task(system, pairs).score == pytest.approx(100 * spearmanr(cosines, expected).statistic, abs=1e-2)
    texts = tuple(f"{word} {other}" for word in WORDS[:2] for other in WORDS[2:])
    labels = tuple(text.split()[0] for text in texts)
    data = LabelledTexts(texts, labels, texts, labels)
    for kind in ("classification", "clustering"):
        task = EvaluationTask(name="l", type=kind, metric="accuracy", instruction="x", data=data, rows=8)
        score = compare_on_task(system, task)
        assert -1e-6 <= score.low <= score.high <= 100 + 1e-6
        if kind == "classification":
            assert score.score == 100


def test_more_rows_give_a_narrower_interval_and_the_seed_repeats_it(system: EncoderSystem) -> None:
    def width(rows: int, seed: int = 0) -> tuple[float, float]:
        texts = tuple(f"{WORDS[i % 6]} {WORDS[i % 5]}" for i in range(rows))
        other = tuple(f"{WORDS[i % 4]} {WORDS[i % 6]}" for i in range(rows))
        data = ScoredPairs(texts, other, tuple(float(i % 7) for i in range(rows)))
        task = EvaluationTask(name="p", type="sts", metric="m", instruction="x", data=data, rows=rows)
        score = compare_on_task(system, task, seed=seed)
        return score.low, score.high

    assert width(30) == width(30)
    assert np.ptp(width(600)) < np.ptp(width(30))
