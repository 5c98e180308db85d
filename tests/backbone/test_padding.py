"""Laws of padding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from promptembedder.backbone import left_pad, text_positions

Rows = list[list[tuple[int, int]]]

ROWS = st.integers(0, 7).flatmap(
    lambda seq: st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1)), min_size=seq, max_size=seq), min_size=1, max_size=4
    )
)


def tensors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.tensor(rows, dtype=torch.long).reshape(len(rows), -1, 2)
    return both[..., 0], both[..., 1]


@given(ROWS)
def test_left_padded_keeps_each_rows_tokens_in_order_at_its_end(rows: Rows) -> None:
    ids, mask = left_pad(*tensors(rows))
    for row, new_ids, new_mask in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        kept = [token for token, one in row if one]
        assert new_mask == [0] * (len(new_mask) - len(kept)) + [1] * len(kept)
        assert new_ids[len(new_ids) - len(kept) :] == kept


@given(ROWS)
def test_left_padded_is_as_narrow_as_the_longest_text(rows: Rows) -> None:
    ids, mask = left_pad(*tensors(rows))
    assert ids.shape == mask.shape
    assert ids.shape[1] == max(sum(one for _, one in row) for row in rows)


@given(ROWS)
def test_left_padding_twice_is_left_padding_once(rows: Rows) -> None:
    once = left_pad(*tensors(rows))
    twice = left_pad(*once)
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1], twice[1])


def test_left_padded_takes_a_boolean_mask() -> None:
    ids, mask = left_pad(torch.tensor([[7, 8, 9]]), torch.tensor([[True, True, False]]))
    assert ids.tolist() == [[7, 8]]
    assert mask.tolist() == [[1, 1]]


def test_left_padded_takes_a_batch_without_rows() -> None:
    ids, mask = left_pad(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long))
    assert (len(ids), len(mask)) == (0, 0)


@given(ROWS)
def test_positions_count_the_tokens_of_each_text_from_zero(rows: Rows) -> None:
    _, mask = tensors(rows)
    positions = text_positions(mask)
    for keep, given_positions in zip(mask.tolist(), positions.tolist(), strict=True):
        seen = [place for place, one in zip(given_positions, keep, strict=True) if one]
        assert seen == list(range(sum(keep)))


@given(ROWS)
def test_no_position_is_negative(rows: Rows) -> None:
    """Position -1 is outside a table of learned positions."""
    positions = text_positions(tensors(rows)[1])
    assert bool((positions >= 0).all())
