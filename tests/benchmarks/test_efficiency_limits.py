"""The largest batch, estimated and searched for, against a memory whose limit is known."""

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.efficiency.limits import MAX_BATCH, fitted_batch, searched_batch


@given(st.integers(1, 2000), st.integers(0, 10**6), st.integers(64, 10_000))
def test_on_a_straight_line_the_estimate_is_exact(slope: int, base: int, limit: int) -> None:
    peaks = {batch: base + slope * batch for batch in (8, 16, 64)}
    assert fitted_batch(peaks, base + slope * limit) == limit


def test_the_estimate_stays_between_what_fits_and_what_does_not() -> None:
    peaks = {8: 800, 16: 1600}
    assert fitted_batch(peaks, 10_000, failed=32) == 31
    assert fitted_batch({8: 800, 16: 801}, 10**9) == MAX_BATCH
    assert fitted_batch({}, 10_000, failed=8) == 0


def test_without_a_line_nothing_is_claimed() -> None:
    assert fitted_batch({}, 10_000) is None
    assert fitted_batch({8: 800}, 10_000) is None
    assert fitted_batch({8: 800, 16: 800}, 10_000) is None
    assert fitted_batch({8: 800}, 10_000, failed=9) == 8


@given(st.integers(1, MAX_BATCH), st.sampled_from([0, 2, 8, 64]), st.none() | st.integers(1, MAX_BATCH))
def test_a_search_ends_within_a_sixteenth_of_the_limit(limit: int, low: int, guess: int | None) -> None:
    low = min(low, limit)
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found = searched_batch(fits, low=low, failed=None, guess=guess)
    assert found <= limit < found + found // 16 + 2
    assert len(set(tried)) == len(tried)


@given(st.integers(100, 10_000))
def test_a_good_guess_needs_few_tries(limit: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    searched_batch(fits, low=8, failed=None, guess=limit)
    assert len(tried) <= 3


def test_what_failed_before_is_not_tried() -> None:
    found = searched_batch(lambda batch: batch <= 20, low=16, failed=32, guess=1000)
    assert found == 20 or 20 - found <= 1
