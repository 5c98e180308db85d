"""Training pairs: a query, the text that answers it, and at times one that does not."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets

from promptembedder.data.pair_columns import PairColumns, listed_columns, pair_columns
from promptembedder.data.readers import read_rows
from promptembedder.data.text import clean_text
from promptembedder.errors import ConfigError, DataError, shown

__all__ = ["Pair", "PairTable", "datasets_of", "read_pairs"]


@dataclass(frozen=True)
class Pair:
    """A query (`anchor`), the text that it should find (`positive`), and a text that it should not."""

    anchor: str
    positive: str
    negative: str | None = None


@dataclass(frozen=True)
class PairTable:
    """The pairs of one file, in its order."""

    pairs: list[Pair]

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order."""
        return iter(self.pairs)


def read_pairs(path: Path, *, limit: int | None = None, seed: int = 0, columns: Sequence[str] = ()) -> PairTable:
    """The pairs of a file, or a random subsample of them in the order of the file.

    Rows have `anchor`, `positive` and, where there is one, `negative`, or columns that `pair_columns` takes for them; a
    null or blank negative is none, as CSV cannot say it otherwise. Other columns are left alone. A file larger than
    memory can be subsampled.

    Args:
        columns: Names of the columns, in this order; empty finds them in the first row.

    Raises:
        DataError: As in `read_rows`; or the columns cannot be told, or an anchor or positive is missing, blank or no
            string.
        ConfigError: `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit of pairs must be at least 1, got {limit}. Leave it out to read all.")
    of = pair_columns(path, columns)
    pairs = (_pair_of(row, of, f"{path}, row {number}") for number, row in enumerate(read_rows(path), start=1))
    return PairTable(pairs=list(pairs) if limit is None else _subsample(pairs, limit, seed=seed))


def datasets_of(pairs: Iterable[Pair], name: str) -> dict[str, datasets.Dataset]:
    """The pairs as data sets for sentence-transformers, which wants the same columns in each row of one.

    `{name}` has the columns anchor, positive; `{name}+negatives` has anchor, positive, negative. The order
    matters: losses read columns by position. A part without rows is left out.
    """
    bare: list[Pair] = []
    full: list[Pair] = []
    for pair in pairs:
        (bare if pair.negative is None else full).append(pair)
    parts = {
        name: (bare, ("anchor", "positive")),
        f"{name}+negatives": (full, ("anchor", "positive", "negative")),
    }
    return {key: _dataset(rows, columns) for key, (rows, columns) in parts.items() if rows}


def _dataset(rows: list[Pair], columns: tuple[str, ...]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {column: [getattr(row, column) for row in rows] for column in columns},
        features=datasets.Features({column: datasets.Value("string") for column in columns}),
    )


def _pair_of(row: dict[str, Any], of: PairColumns, place: str) -> Pair:
    negative = row.get(of.negative)
    if isinstance(negative, str) and not negative.strip():
        negative = None
    return Pair(
        anchor=_text_of(row, of.anchor, place),
        positive=_text_of(row, of.positive, place),
        negative=None if negative is None else _text_of(row, of.negative, place),
    )


def _text_of(row: dict[str, Any], column: str, place: str) -> str:
    if column not in row:
        raise DataError(
            f"{place} has no {shown(column)}: found {listed_columns(row)}. Rename the columns to anchor, positive, "
            "negative."
        )
    value = row[column]
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {shown(column)} is {shown(value)} ({type(value).__name__}), not a string. Mend or drop the row."
        )
    if not value.strip():
        raise DataError(f"{place}: {shown(column)} is blank. Fill it or drop the row.")
    return clean_text(value)


def _subsample(pairs: Iterable[Pair], limit: int, *, seed: int) -> list[Pair]:
    """`limit` pairs, each as likely as any other, in one pass (Vitter 1985, algorithm R)."""
    rng = random.Random(seed)
    kept: list[tuple[int, Pair]] = []
    for number, pair in enumerate(pairs):
        if number < limit:
            kept.append((number, pair))
        elif (slot := rng.randrange(number + 1)) < limit:
            kept[slot] = (number, pair)
    return [pair for _, pair in sorted(kept, key=itemgetter(0))]
