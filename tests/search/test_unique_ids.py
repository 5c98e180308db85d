"""Laws of finding an id that comes twice."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptembedder.errors import DataError
from promptembedder.search.vector_table import check_unique, first_repeated


class AlikeHash(str):
    """Strings of one length have one hash."""

    def __hash__(self) -> int:
        return len(self)


@given(st.lists(st.lists(st.text(alphabet="abc", max_size=4).map(AlikeHash))))
def test_the_first_repetition_is_found_however_many_hashes_are_alike(batches: list[list[str]]) -> None:
    seen: list[str] = []
    expected = None
    for one in (one for some in batches for one in some):
        if one in seen:
            expected = one
            break
        seen.append(one)
    assert first_repeated(lambda: batches) == expected


def test_the_message_says_where_the_other_one_is() -> None:
    def present() -> Iterator[list[str]]:
        yield ["a", "b"]

    check_unique(lambda: [["c"], ["d"]], present=present)
    with pytest.raises(DataError, match="'b' is in the table already"):
        check_unique(lambda: [["c"], ["b"]], present=present)
    with pytest.raises(DataError, match="'c' is repeated"):
        check_unique(lambda: [["c"], ["c"]], present=present)
