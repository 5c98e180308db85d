"""Laws of pooling."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptembedder.method import POOLINGS, l2_normalize, pool

MASKS = st.integers(1, 6).flatmap(
    lambda seq: st.lists(st.lists(st.integers(0, 1), min_size=seq, max_size=seq), min_size=1, max_size=4)
)


def pooled_slowly(states: torch.Tensor, mask: list[list[int]], pooling: str) -> torch.Tensor:
    """The plain reference, one text after the other."""
    rows = []
    for row, keep in zip(states, mask, strict=True):
        kept = [state for state, one in zip(row, keep, strict=True) if one]
        if not kept:
            rows.append(torch.zeros(states.shape[2]))
        else:
            rows.append(kept[-1] if pooling == "last" else sum(kept) / len(kept))
    return torch.stack(rows)


def states_for(mask: list[list[int]], *, padding: float = 3.0) -> torch.Tensor:
    states = torch.randn(len(mask), len(mask[0]), 5, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.tensor(mask).unsqueeze(-1) == 1, states, padding)


@pytest.mark.parametrize("pooling", POOLINGS)
@given(mask=MASKS)
def test_pooled_equals_a_plain_loop(pooling: str, mask: list[list[int]]) -> None:
    states = states_for(mask)
    torch.testing.assert_close(
        pool(states, torch.tensor(mask), pooling=pooling), pooled_slowly(states, mask, pooling), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
@given(mask=MASKS)
def test_what_lies_in_padded_positions_does_not_leak(pooling: str, junk: float, mask: list[list[int]]) -> None:
    """`last` used to multiply by a zero, and zero times NaN is NaN."""
    clean = pool(states_for(mask), torch.tensor(mask), pooling=pooling)
    assert torch.equal(pool(states_for(mask, padding=junk), torch.tensor(mask), pooling=pooling), clean)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_low_precision_state_is_pooled_in_float32(pooling: str) -> None:
    states = states_for([[1] * 6] * 2).bfloat16()
    mask = torch.ones(2, 6, dtype=torch.long)
    assert torch.equal(pool(states, mask, pooling=pooling), pool(states.float(), mask, pooling=pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_without_any_position_pools_to_zeros(pooling: str) -> None:
    vectors = pool(torch.zeros(3, 0, 5), torch.zeros(3, 0, dtype=torch.long), pooling=pooling)
    assert torch.equal(vectors, torch.zeros(3, 5))


def test_unit_vectors_have_length_one_and_the_direction_they_had() -> None:
    vectors = 40 * torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    unit = l2_normalize(vectors)
    for row, short in zip(vectors.tolist(), unit.tolist(), strict=True):
        length = math.sqrt(sum(value * value for value in row))
        assert short == pytest.approx([value / length for value in row], abs=1e-5)


def test_the_unit_vector_of_zero_is_zero() -> None:
    assert torch.equal(l2_normalize(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_unit_vectors_are_float32_whatever_comes_in() -> None:
    assert l2_normalize(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
