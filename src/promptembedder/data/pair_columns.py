"""Which columns of a file hold the pairs: by name, or the only two there are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from promptembedder.data.readers import read_rows
from promptembedder.errors import ConfigError, DataError, shown

__all__ = ["PairColumns", "listed_columns", "pair_columns"]

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
_MOST_SHOWN = 20


@dataclass(frozen=True)
class PairColumns:
    """Columns of the query, of the text that answers it, and of one that does not."""

    anchor: str = "anchor"
    positive: str = "positive"
    negative: str = "negative"

    @classmethod
    def named(cls, names: Sequence[str]) -> "PairColumns":
        """Of two or three names: anchor, positive, and maybe negative."""
        return cls(*names)

    @classmethod
    def found(cls, names: Sequence[str], *, place: str) -> "PairColumns":
        """Those of a file with columns of these names, in any case: known names, or the only two that can be texts.

        Raises:
            DataError: They cannot be told; the message begins with `place`.
        """
        plain = {name.strip().lower(): name for name in names}
        negative = next((plain[name] for name in _NEGATIVES if name in plain), "negative")
        for anchor, positive in _KNOWN:
            if anchor in plain and positive in plain:
                return cls(plain[anchor], plain[positive], negative)
        if not plain.keys() & {"anchor", "positive", *_NO_TEXTS}:
            others = [name for name in names if name != negative]
            if len(others) == 2:
                return cls(others[0], others[1], negative)
        missing = "positive" if "anchor" in plain else "anchor"
        raise DataError(
            f"{place} has no {missing!r}: found {listed_columns(names)}. Rename the columns to anchor, positive, "
            "negative; or name them: data.columns=[QUERY, TEXT]."
        )


def listed_columns(names: Iterable[str]) -> str:
    """The names as a message may hold them, whatever a file calls its columns, and however many it has."""
    return ", ".join(shown(name) for name in islice(names, _MOST_SHOWN)) or "no columns"


def pair_columns(path: Path, columns: Sequence[str] = ()) -> PairColumns:
    """The columns of the pairs in a file.

    Args:
        columns: Their names: anchor, positive, and maybe negative; empty finds them in the first row.

    Raises:
        DataError: As in `read_rows`; or they cannot be told.
        ConfigError: Not two or three names are given.
    """
    if columns:
        if len(columns) not in (2, 3):
            raise ConfigError(f"columns must name anchor, positive and maybe negative, got {list(columns)}.")
        return PairColumns.named(columns)
    return PairColumns.found(list(next(read_rows(path))), place=f"{path}, row 1")
