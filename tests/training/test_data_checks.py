"""Laws of the checks of training data."""

import logging
from collections.abc import Sequence

import pytest

from promptembedder.data import Pair
from promptembedder.errors import DataError
from promptembedder.training.data import TrainingData, build_task_data, log_data_warnings


def check(pairs: Sequence[Pair], caplog: pytest.LogCaptureFixture, *instructions: str) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        log_data_warnings(TrainingData(build_task_data(pairs, "faq", instructions=instructions)))
    return caplog.text


@pytest.mark.parametrize(
    "pairs",
    [
        [Pair("a", "b")],
        [Pair("a", "b")] * 60,
        [Pair("a", f"text {row}") for row in range(9)],
        [Pair(f"query {row}", "b") for row in range(9)],
    ],
    ids=["single", "identical", "one query", "one text"],
)
def test_pairs_without_any_negative_are_refused(pairs: list[Pair], caplog: pytest.LogCaptureFixture) -> None:
    """They trained to a loss of 0.000 without a word."""
    with pytest.raises(DataError, match=r"task 'faq' has one distinct (query|text) in .* no row has a negative"):
        check(pairs, caplog, "find it")


def test_what_trains_badly_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Repeated pairs, labels that pose as texts and a missing instruction gave no warning."""
    pairs = [Pair(f"query {row}", f"text {row}") for row in range(20)]
    assert check(pairs, caplog, "find it") == ""
    assert "task 'faq' repeats 5 of its 25 pairs" in check([*pairs, *pairs[:5]], caplog, "find it")
    labels = [Pair(f"query {row}", f"label {row % 4}") for row in range(20)]
    assert "the 20 pairs of task 'faq' have only 4 distinct texts, as labels have" in check(labels, caplog, "find it")
    assert "task 'faq' has no instruction" in check(pairs, caplog)


def test_hard_negatives_are_negatives(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [Pair(f"query {row}", "yes", "no") for row in range(9)]
    assert check(pairs, caplog, "find it") == ""
