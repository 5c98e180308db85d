"""Laws of choosing what is read next."""

from hypothesis import given
from hypothesis import strategies as st

from promptembedder.server.batch_embedder import next_batch

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 4000))
def test_the_oldest_is_read_and_nothing_is_read_twice(lengths: list[int], max_tokens: int) -> None:
    batch = next_batch(lengths, max_tokens=max_tokens)
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(range(len(lengths)))


@given(LENGTHS, st.integers(1, 4000))
def test_a_batch_keeps_to_its_budget_and_wastes_little(lengths: list[int], max_tokens: int) -> None:
    own = [lengths[place] for place in next_batch(lengths, max_tokens=max_tokens)]
    computed, padding = len(own) * max(own), len(own) * max(own) - sum(own)
    assert len(own) == 1 or computed <= max_tokens
    assert padding <= max(0.15 * sum(own), 64)


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 4000))
def test_texts_of_one_length_fill_the_budget(length: int, count: int, max_tokens: int) -> None:
    batch = next_batch([length] * count, max_tokens=max_tokens)
    assert len(batch) == min(count, max(max_tokens // length, 1))


@given(LENGTHS)
def test_reading_batch_after_batch_reads_everything(lengths: list[int]) -> None:
    waiting = list(range(len(lengths)))
    while waiting:
        batch = next_batch([lengths[place] for place in waiting], max_tokens=1000)
        waiting = [text for place, text in enumerate(waiting) if place not in batch]


def test_short_and_long_texts_are_read_apart() -> None:
    assert sorted(next_batch([16, 500, 18, 480, 17], max_tokens=4000)) == [0, 2, 4]
    assert sorted(next_batch([500, 16, 18, 480, 17], max_tokens=4000)) == [0, 3]
