"""Which id comes twice, in eight bytes an id."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np

from promptembedder.errors import DataError

__all__ = ["check_unique", "first_repeated"]

_Ids = Callable[[], Iterable[Sequence[str]]]


def check_unique(ids: _Ids, *, present: _Ids = tuple) -> None:
    """Raise unless each id comes once, and none is `present` already.

    Raises:
        DataError: One does; the message names the first.
    """
    repeated = first_repeated(lambda: chain(present(), ids()))
    if repeated is not None:
        place = "in the table already" if any(repeated in some for some in present()) else "there twice"
        raise DataError(f"the id {repeated!r} is {place}. Rename the row, leave it out, or delete the other one.")


def first_repeated(batches: _Ids) -> str | None:
    """The first id that came before, or None if each comes once.

    Memory: 8 bytes an id, which are hashes. Where two are alike, the ids are gone through again and those with such
    a hash are compared as they are, so an accident of hashing is no repetition.
    """
    parts = [np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)) for ids in batches()]
    hashes = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    hashes.sort()
    alike = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not alike:
        return None
    seen = set[str]()
    for ids in batches():
        for one in ids:
            if hash(one) in alike:
                if one in seen:
                    return one
                seen.add(one)
    return None
