"""Laws of exact search, against a slow plain reference."""

import numpy as np
import pytest

from promptembedder.errors import ConfigError, DataError
from promptembedder.search import ExactIndex, Hit


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def index_of(vectors: np.ndarray) -> ExactIndex:
    rows = range(len(vectors))
    return ExactIndex(ids=[f"id {row}" for row in rows], texts=[f"text {row}" for row in rows], vectors=vectors)


def searched_slowly(vectors: np.ndarray, query: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Rows and cosines: one document after the other in float64, rounded so that equal documents tie."""
    rows = []
    for row, vector in enumerate(vectors.astype(np.float64)):
        cosine = sum(vector * query) / np.sqrt(sum(vector**2)) / np.sqrt(sum(query.astype(np.float64) ** 2))
        rows.append((row, round(float(cosine), 6)))
    return sorted(rows, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("docs", "dim", "k"), [(1, 3, 1), (50, 7, 10), (333, 40, 20), (20, 577, 20)])
def test_search_equals_a_slow_plain_reference_where_a_third_of_the_texts_repeat(
    seed: int, docs: int, dim: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((docs, dim)))
    vectors[rng.integers(0, docs, docs // 3)] = vectors[docs // 2]
    query = rng.standard_normal(dim).astype(np.float32)
    hits = index_of(vectors).search(query, k=k)
    expected = searched_slowly(vectors, query, k)
    assert [(hit.rank, hit.id, hit.text) for hit in hits] == [
        (rank, f"id {row}", f"text {row}") for rank, (row, _) in enumerate(expected, start=1)
    ]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=2e-6)


@pytest.mark.parametrize("dim", [1, 7, 40, 576, 577])
def test_equal_texts_come_in_the_order_of_their_rows(dim: int) -> None:
    """A matrix product sums the last rows of a block in another order, so that equal rows differed by one bit."""
    rng = np.random.default_rng(dim)
    same = unit(rng.standard_normal((1, dim)))
    hits = index_of(np.repeat(same, 101, axis=0)).search(rng.standard_normal(dim).astype(np.float32), k=101)
    assert [hit.id for hit in hits] == [f"id {row}" for row in range(101)]
    assert len({hit.score for hit in hits}) == 1


def test_the_length_of_the_query_does_not_matter() -> None:
    index = index_of(unit(np.random.default_rng(0).standard_normal((9, 4))))
    query = np.array([1.0, -2.0, 3.0, 0.5], dtype=np.float32)
    for hit, other in zip(index.search(query, k=9), index.search(query * 1000, k=9), strict=True):
        assert (hit.rank, hit.id) == (other.rank, other.id)
        assert hit.score == pytest.approx(other.score, abs=1e-6)


def test_a_text_finds_itself_with_cosine_one() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((5, 8)))
    (hit,) = index_of(vectors).search(vectors[3], k=1)
    assert hit == Hit(rank=1, id="id 3", text="text 3", score=hit.score)
    assert hit.score == pytest.approx(1, abs=1e-6)


def test_more_hits_than_texts_gives_all_of_them() -> None:
    index = index_of(unit(np.eye(3)))
    assert [hit.rank for hit in index.search(np.ones(3, dtype=np.float32), k=100)] == [1, 2, 3]


def test_vectors_of_length_zero_are_as_far_as_right_angles() -> None:
    index = index_of(np.array([[0, 0], [0, 1], [-1, 0]], dtype=np.float32))
    hits = index.search(np.array([1, 1], dtype=np.float32), k=3)
    assert [(hit.id, round(hit.score, 4)) for hit in hits] == [("id 1", 0.7071), ("id 0", 0.0), ("id 2", -0.7071)]
    assert [hit.score for hit in index.search(np.zeros(2, dtype=np.float32), k=3)] == [0, 0, 0]


def test_a_search_that_cannot_be_meant_is_refused() -> None:
    index = index_of(unit(np.eye(3)))
    query = np.ones(3, dtype=np.float32)
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"at least 1, got {k}"):
            index.search(query, k=k)
    with pytest.raises(DataError, match="query has 2 dimensions, the index has 3"):
        index.search(query[:2], k=1)
    with pytest.raises(DataError, match="not finite"):
        index.search(query * np.nan, k=1)


def test_an_index_whose_parts_do_not_fit_is_refused() -> None:
    vectors = unit(np.eye(2))
    with pytest.raises(DataError, match="1 ids, 2 texts and 2 vectors"):
        ExactIndex(ids=["a"], texts=["a", "b"], vectors=vectors)
    for value in (0.5, np.nan, np.inf):
        broken = vectors.copy()
        broken[1, 0] = value
        with pytest.raises(DataError, match="vector of 'b' has length"):
            ExactIndex(ids=["a", "b"], texts=["a", "b"], vectors=broken)
