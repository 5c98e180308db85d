"""Pairs of a file, subsamples of them, and the data sets made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptembedder.data import Pair, build_datasets, read_pairs
from promptembedder.errors import ConfigError, DataError

files_take_their_time = settings(deadline=None)  # of a busy disk, not of the code


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(path: Path, count: int) -> Path:
    return written(path, [{"anchor": f"q{n}", "positive": f"a{n}"} for n in range(count)])


def test_pairs_come_back_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"anchor": "q", "positive": "a"}, {"anchor": "q2", "positive": "a2", "negative": "n2", "score": 1}]
    table = read_pairs(written(tmp_path / "a.jsonl", rows))
    assert table.pairs == [Pair("q", "a"), Pair("q2", "a2", "n2")]
    assert len(table) == 2
    assert list(table) == table.pairs


@pytest.mark.parametrize("negative", [None, "", " "])
def test_a_null_or_blank_negative_is_none(tmp_path: Path, negative: str | None) -> None:
    path = written(tmp_path / "a.jsonl", [{"anchor": "q", "positive": "a", "negative": negative}])
    assert read_pairs(path).pairs == [Pair("q", "a", None)]


def test_lone_surrogates_of_pairs_are_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"anchor": "\ud800", "positive": "a\udc00", "negative": "n\ud83d"}])
    assert read_pairs(path).pairs == [Pair("\ufffd", "a\ufffd", "n\ufffd")]


@files_take_their_time
@given(count=st.integers(1, 40), limit=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_a_subsample_has_distinct_pairs_in_order_and_the_size_asked_for(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int, seed: int
) -> None:
    path = numbered(tmp_path_factory.getbasetemp() / "pairs.jsonl", count)
    every = read_pairs(path).pairs
    some = read_pairs(path, limit=limit, seed=seed).pairs
    places = [every.index(pair) for pair in some]
    assert len(some) == min(count, limit)
    assert places == sorted(set(places))
    assert some == read_pairs(path, limit=limit, seed=seed).pairs


def test_every_pair_is_as_likely_in_a_subsample(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 20)
    draws = [pair for seed in range(400) for pair in read_pairs(path, limit=5, seed=seed)]
    counts = [draws.count(pair) for pair in read_pairs(path)]
    assert min(counts) > 60  # each is expected 100 times, with a standard deviation below 9
    assert max(counts) < 140


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"positive": "a"}, r"a\.jsonl, row 2 has no 'anchor': found 'positive'\. Rename"),
        ({"anchor": "q", "answer": "a"}, "row 2 has no 'positive': found 'anchor', 'answer'"),
        ({"anchor": None, "positive": "a"}, r"row 2: 'anchor' is None \(NoneType\), not a string"),
        ({"anchor": "q", "positive": 3}, r"row 2: 'positive' is 3 \(int\), not a string"),
        ({"anchor": "q", "positive": " \n"}, "row 2: 'positive' is blank"),
        ({"anchor": "", "positive": "a"}, "row 2: 'anchor' is blank"),
        ({"anchor": "q", "positive": "a", "negative": ["n"]}, r"row 2: 'negative' is .* \(list\)"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.jsonl", [{"anchor": "q", "positive": "a"}, row])
    with pytest.raises(DataError, match=message):
        read_pairs(path)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1, got {limit}"):
        read_pairs(numbered(tmp_path / "a.jsonl", 3), limit=limit)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)


@files_take_their_time
@given(st.lists(st.builds(Pair, anchor=TEXT, positive=TEXT, negative=st.none() | TEXT), max_size=8))
def test_data_sets_hold_every_pair_once_and_no_nulls(pairs: list[Pair]) -> None:
    parts = build_datasets(pairs, "nli")
    bare = [{"anchor": pair.anchor, "positive": pair.positive} for pair in pairs if pair.negative is None]
    full = [
        {"anchor": pair.anchor, "positive": pair.positive, "negative": pair.negative}
        for pair in pairs
        if pair.negative is not None
    ]
    expected = {name: rows for name, rows in (("nli", bare), ("nli+negatives", full)) if rows}
    assert {name: part.to_list() for name, part in parts.items()} == expected


def test_columns_stand_in_the_order_that_losses_read_them(tmp_path: Path) -> None:
    rows = [{"positive": "a", "anchor": "q"}, {"negative": "n", "positive": "a", "anchor": "q"}]
    parts = build_datasets(read_pairs(written(tmp_path / "a.jsonl", rows)), "t")
    assert parts["t"].column_names == ["anchor", "positive"]
    assert parts["t+negatives"].column_names == ["anchor", "positive", "negative"]
