"""Text pairs: column detection and reading from files."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets

from promptembedder.data.readers import read_rows
from promptembedder.data.sources import SourceFile
from promptembedder.data.texts import clean_text
from promptembedder.errors import ConfigError, DataError, short_repr

__all__ = [
    "Pair",
    "PairColumns",
    "PairTable",
    "add_other_answers",
    "build_datasets",
    "detect_pair_columns",
    "format_columns",
    "read_pairs",
]

_KNOWN = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "answer"),
    ("question", "answer"),
    ("question", "passage"),
    ("question", "document"),
    ("question", "context"),
    ("title", "text"),
    ("title", "body"),
    ("title", "abstract"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
_NEGATIVES = ("negative", "hard_negative", "negative_1")
_NO_TEXTS = ("id", "_id", "idx", "index", "label", "class", "category", "score", "similarity", "split")
_MAX_SHOWN = 20


@dataclass(frozen=True)
class PairColumns:
    """Names of the anchor, positive and negative columns."""

    anchor: str = "anchor"
    positive: str = "positive"
    negative: str = "negative"

    @classmethod
    def named(cls, names: Sequence[str]) -> "PairColumns":
        """Build from two or three distinct names: anchor, positive and optionally negative.

        Raises:
            ConfigError: If there are fewer or more names, or two are equal.
        """
        if len(names) not in (2, 3) or len(set(names)) < len(names):
            raise ConfigError(
                f"columns must name anchor, positive and maybe negative, each another column, got {list(names)}."
            )
        return cls(*names)

    @classmethod
    def found(cls, names: Sequence[str], *, place: str, from_first_row: bool = False) -> "PairColumns":
        """Detect the columns of pairs among a file's columns: known names in any case, or the only two text columns.

        Args:
            from_first_row: The names are the first row of a table, which may be a pair. Only known names are accepted.

        Raises:
            DataError: If the columns are ambiguous, or are no known names in the first row of a table. The message
                begins with `place`.
        """
        plain = {name.strip().lower(): name for name in names}
        negative = next((plain[name] for name in _NEGATIVES if name in plain), "negative")
        for anchor, positive in _KNOWN:
            if anchor in plain and positive in plain:
                return cls(plain[anchor], plain[positive], negative)
        if not plain.keys() & {"anchor", "positive", *_NO_TEXTS}:
            others = [name for name in names if name != negative]
            if len(others) == 2 and from_first_row:
                raise DataError(
                    f"{place} was taken as header, and {format_columns(others)} are no known names of columns. Begin "
                    "the file with a row of names, such as anchor and positive; or, if it is a header, name its "
                    f"columns: --columns {short_repr(','.join(others))} (data.columns)."
                )
            if len(others) == 2:
                return cls(others[0], others[1], negative)
        missing = "positive" if "anchor" in plain else "anchor"
        raise DataError(
            f"{place} has no {missing!r}: found {format_columns(names)}. Rename the columns to anchor, positive, "
            "negative; or name them: data.columns=[QUERY, TEXT]."
        )


def format_columns(names: Iterable[str]) -> str:
    """Format column names for a message, printable and limited in number."""
    return ", ".join(short_repr(name) for name in islice(names, _MAX_SHOWN)) or "no columns"


def detect_pair_columns(
    path: Path, columns: Sequence[str] = (), *, delimiter: str | None = None, encoding: str = "utf-8"
) -> PairColumns:
    """Detect the columns of the pairs in a file.

    Args:
        columns: Names of anchor, positive and optionally negative. If empty, they are detected from the first row.
        delimiter: As in `read_rows`.
        encoding: As in `read_rows`.

    Raises:
        DataError: As in `read_rows`, or if the columns are ambiguous, or the file has no header row.
        ConfigError: If the number of names is not two or three, or a name is repeated.
    """
    if columns:
        return PairColumns.named(columns)
    first = next(read_rows(path, delimiter=delimiter, encoding=encoding))
    is_table = SourceFile(str(path)).ending in (".csv", ".tsv")  # other formats name the columns outside of the rows
    return PairColumns.found(list(first), place=f"{path}, row 1", from_first_row=is_table)


@dataclass(frozen=True)
class Pair:
    """Query (`anchor`), a text that it should find (`positive`), and a text that it should not (`negative`).

    `instruction` is that of the anchor, if each row has its own.
    """

    anchor: str
    positive: str
    negative: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class PairTable:
    """Pairs of one file, in its order."""

    pairs: list[Pair]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        """Iterate over the pairs in order."""
        return iter(self.pairs)


def read_pairs(
    path: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    columns: Sequence[str] = (),
    instruction_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> PairTable:
    """Read the pairs of a file, or a random subsample of them, in the order of the file.

    Rows have `anchor`, `positive` and optionally `negative`, or columns that `detect_pair_columns` detects. A null or
    blank negative counts as missing. Other columns are ignored. A file larger than memory can be subsampled.

    Args:
        columns: Names of the columns, in this order. If empty, they are detected from the first row.
        instruction_column: Column with the instruction of each row's anchor. If None, `instruction`, if the first row
            has such a column beside anchor and positive.
        delimiter: As in `read_rows`.
        encoding: As in `read_rows`.

    Raises:
        DataError: As in `detect_pair_columns`, or if an anchor, positive or instruction is missing, blank or not a
            string.
        ConfigError: If `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit of pairs must be at least 1, got {limit}. Leave it out to read all.")
    of = detect_pair_columns(path, columns, delimiter=delimiter, encoding=encoding)
    if instruction_column is None and "instruction" not in (of.anchor, of.positive, of.negative):
        first = next(read_rows(path, delimiter=delimiter, encoding=encoding))
        instruction_column = "instruction" if "instruction" in first else None
    rows = read_rows(path, delimiter=delimiter, encoding=encoding)
    pairs = (_pair_of(row, of, f"{path}, row {number}", instruction_column) for number, row in enumerate(rows, start=1))
    return PairTable(pairs=list(pairs) if limit is None else _subsample(pairs, limit, seed=seed))


def build_datasets(pairs: Iterable[Pair], name: str) -> dict[str, datasets.Dataset]:
    """Split pairs into data sets for sentence-transformers, in each of which all rows have the same columns.

    `{name}` has the columns anchor, positive, and `{name}+negatives` has anchor, positive, negative. The order matters,
    because losses take columns by position. A column `instruction` follows if the pairs have one. A data set without
    rows is omitted.
    """
    bare: list[Pair] = []
    full: list[Pair] = []
    for pair in pairs:
        (bare if pair.negative is None else full).append(pair)
    own = ("instruction",) if any(pair.instruction for pair in bare + full) else ()
    parts = {
        name: (bare, ("anchor", "positive", *own)),
        f"{name}+negatives": (full, ("anchor", "positive", "negative", *own)),
    }
    return {key: _dataset(rows, columns) for key, (rows, columns) in parts.items() if rows}


def _dataset(rows: list[Pair], columns: tuple[str, ...]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {column: [getattr(row, column) for row in rows] for column in columns},
        features=datasets.Features({column: datasets.Value("string") for column in columns}),
    )


def add_other_answers(pairs: Sequence[Pair], *, seed: int) -> list[Pair]:
    """Give each pair without a negative the positive of the same anchor under another instruction, if there is one.

    A text under a question should be near the answer to this question and not near its answer to another one.
    """
    generator = random.Random(seed)
    answers: dict[str, dict[str, None]] = {}
    right: dict[tuple[str, str | None], set[str]] = {}  # one question may have several answers
    for pair in pairs:
        answers.setdefault(pair.anchor, {})[pair.positive] = None
        right.setdefault((pair.anchor, pair.instruction), set()).add(pair.positive)
    added = []
    for pair in pairs:
        others = [answer for answer in answers[pair.anchor] if answer not in right[pair.anchor, pair.instruction]]
        keeps = pair.negative is not None or pair.instruction is None or not others
        added.append(pair if keeps else replace(pair, negative=generator.choice(others)))
    return added


def _pair_of(row: dict[str, Any], of: PairColumns, place: str, instruction_column: str | None) -> Pair:
    negative = row.get(of.negative)
    if isinstance(negative, str) and not negative.strip():
        negative = None
    return Pair(
        anchor=_text_of(row, of.anchor, place),
        positive=_text_of(row, of.positive, place),
        negative=None if negative is None else _text_of(row, of.negative, place),
        instruction=None if instruction_column is None else _text_of(row, instruction_column, place),
    )


def _text_of(row: dict[str, Any], column: str, place: str) -> str:
    if column not in row:
        raise DataError(
            f"{place} has no {short_repr(column)}: found {format_columns(row)}. Rename the columns to anchor, "
            "positive, negative."
        )
    value = row[column]
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {short_repr(column)} is {short_repr(value)} ({type(value).__name__}), not a string. "
            "Correct or drop the row."
        )
    if not value.strip():
        raise DataError(f"{place}: {short_repr(column)} is blank. Fill it or drop the row.")
    return clean_text(value)


def _subsample(pairs: Iterable[Pair], limit: int, *, seed: int) -> list[Pair]:
    """Sample `limit` pairs uniformly in one pass (Vitter 1985, algorithm R)."""
    rng = random.Random(seed)
    kept: list[tuple[int, Pair]] = []
    for number, pair in enumerate(pairs):
        if number < limit:
            kept.append((number, pair))
        elif (slot := rng.randrange(number + 1)) < limit:
            kept[slot] = (number, pair)
    return [pair for _, pair in sorted(kept, key=itemgetter(0))]
