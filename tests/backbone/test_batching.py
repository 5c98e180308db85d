"""Laws of batches of like length."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptembedder.backbone import length_bucketed_batches, packed_batches
from promptembedder.backbone.batching import _CALL_TOKENS
from promptembedder.errors import ConfigError

LENGTHS = st.lists(st.integers(0, 200), max_size=40)


def cost_of(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(len(batch) * max(lengths[place] for place in batch) + _CALL_TOKENS for batch in batches)


@given(lengths=LENGTHS)
def test_every_text_is_in_one_batch_and_the_longest_come_first(lengths: list[int]) -> None:
    batches = length_bucketed_batches(lengths)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
    restore_order = [lengths[place] for batch in batches for place in batch]
    assert restore_order == sorted(restore_order, reverse=True)


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_no_other_split_costs_less(lengths: list[int]) -> None:
    """Against all ways to cut the sorted texts into runs."""
    ordered = sorted(lengths, reverse=True)
    least = math.inf
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        runs, start = [], 0
        for end, cut in enumerate((*cuts, True), start=1):
            if cut:
                runs.append(list(range(start, end)))
                start = end
        least = min(least, cost_of(runs, ordered))
    assert cost_of(length_bucketed_batches(lengths), lengths) == least


@given(lengths=st.lists(st.integers(0, 50), max_size=60), max_tokens=st.integers(50, 300), max_texts=st.integers(1, 20))
def test_no_batch_is_over_its_limits_and_none_could_do_without_a_piece(
    lengths: list[int], max_tokens: int, max_texts: int
) -> None:
    whole = length_bucketed_batches(lengths)
    batches = length_bucketed_batches(lengths, max_tokens=max_tokens, max_texts=max_texts)
    assert list(itertools.chain.from_iterable(batches)) == list(itertools.chain.from_iterable(whole))
    for batch in batches:
        assert len(batch) <= max_texts
        assert len(batch) * max(lengths[place] for place in batch) <= max_tokens
    rooms = [min(max_texts, max_tokens // max(lengths[batch[0]], 1)) for batch in whole]
    assert len(batches) == sum(math.ceil(len(batch) / room) for batch, room in zip(whole, rooms, strict=True))


def test_a_text_longer_than_the_budget_is_refused() -> None:
    assert length_bucketed_batches([50, 50], max_tokens=50) == [[0], [1]]
    with pytest.raises(ConfigError, match="max_batch_tokens is 49, and a text has 50 tokens"):
        length_bucketed_batches([3, 50], max_tokens=49)


def test_texts_of_one_length_are_one_batch_and_no_texts_none() -> None:
    assert length_bucketed_batches([7, 7, 7]) == [[0, 1, 2]]
    assert length_bucketed_batches([]) == []
    assert length_bucketed_batches([512] + [8] * 64) == [[0], list(range(1, 65))]


@given(lengths=LENGTHS, max_tokens=st.integers(1, 300), max_texts=st.none() | st.integers(1, 20))
def test_batches_without_padding_are_full(lengths: list[int], max_tokens: int, max_texts: int | None) -> None:
    batches = packed_batches(lengths, max_tokens=max_tokens, max_texts=max_texts)
    restore_order = [lengths[place] for batch in batches for place in batch]
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
    assert restore_order == sorted(restore_order, reverse=True)
    sums = [sum(lengths[place] for place in batch) for batch in batches]
    for batch, tokens in zip(batches, sums, strict=True):
        assert len(batch) == 1 or tokens <= max_tokens
        assert max_texts is None or len(batch) <= max_texts
    for (batch, after), tokens in zip(itertools.pairwise(batches), sums, strict=False):
        assert tokens + lengths[after[0]] > max_tokens or len(batch) == max_texts
