"""Detection of repeated ids with eight bytes of memory per id."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np

from promptembedder.errors import DataError

__all__ = ["check_unique", "first_repeated"]

_Ids = Callable[[], Iterable[Sequence[str]]]


def check_unique(ids: _Ids, *, present: _Ids = tuple) -> None:
    """Check that no id is repeated or in `present`.

    Raises:
        DataError: If an id is. The message names the first one.
    """
    repeated = first_repeated(lambda: chain(present(), ids()))
    if repeated is not None:
        problem = "in the table already" if any(repeated in batch for batch in present()) else "repeated"
        raise DataError(f"the id {repeated!r} is {problem}. Rename the row, leave it out, or delete the other one.")


def first_repeated(batches: _Ids) -> str | None:
    """Find the first repeated id. Return None if all ids are distinct.

    Memory is one 8-byte hash per id. If hashes collide, a second pass compares the ids with these hashes themselves.
    """
    parts = [np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)) for ids in batches()]
    hashes = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    hashes.sort()
    repeated_hashes = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated_hashes:
        return None
    seen = set[str]()
    for ids in batches():
        for one in ids:
            if hash(one) in repeated_hashes:
                if one in seen:
                    return one
                seen.add(one)
    return None
