"""Attention written out for few queries is attention."""

import math

import pytest
import torch
from torch import Tensor

from promptembedder.backbone.packing import few_query_attention

HEADS, KEY_HEADS, WIDTH = 6, 2, 5


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended_slowly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    """The plain reference: one query of one head at a time."""
    out = torch.zeros_like(query)
    for row in range(query.shape[0]):
        for head in range(HEADS):
            shared = head // (HEADS // KEY_HEADS)
            for new in range(query.shape[2]):
                scores = key[row, shared] @ query[row, head, new] / math.sqrt(WIDTH)
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                scores = scores.masked_fill(~mask[row % len(mask), 0, new], -math.inf)
                out[row, head, new] = scores.softmax(dim=0) @ value[row, shared]
    return out


def inputs(new: int, seq: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(2, HEADS, new, WIDTH, seed=1),
        normal(2, KEY_HEADS, seq, WIDTH, seed=2),
        normal(2, KEY_HEADS, seq, WIDTH, seed=3),
    )


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("rows", [1, 2])
def test_it_equals_a_plain_loop_under_any_mask(rows: int, softcap: float | None) -> None:
    query, key, value = inputs(3, 7)
    mask = normal(rows, 1, 3, 7, seed=4) > 0
    mask[..., 0] = True  # a query that may look nowhere has no answer
    found = few_query_attention(query, key, value, mask=mask, scaling=WIDTH**-0.5, softcap=softcap)
    torch.testing.assert_close(found, attended_slowly(query, key, value, mask, softcap), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("new", "seq"), [(1, 7), (4, 4), (3, 7)])
def test_without_a_mask_the_queries_are_the_last_ones_and_look_back(new: int, seq: int) -> None:
    query, key, value = inputs(new, seq)
    mask = torch.tensor([[[[past <= seq - new + row for past in range(seq)] for row in range(new)]]])
    found = few_query_attention(query, key, value, mask=None, scaling=WIDTH**-0.5)
    torch.testing.assert_close(found, attended_slowly(query, key, value, mask, None), atol=1e-5, rtol=0)


def test_a_query_that_may_look_nowhere_is_finite() -> None:
    """A soft token never is one, but a padded place in a full pass is."""
    mask = torch.zeros(2, 1, 3, 7, dtype=torch.bool)
    found = few_query_attention(*inputs(3, 7), mask=mask, scaling=1.0)
    assert bool(torch.isfinite(found).all())


def test_its_gradients_are_those_of_the_plain_loop() -> None:
    mask = normal(2, 1, 3, 7, seed=4) > 0
    mask[..., 0] = True
    gradients = []
    for attend in (
        lambda q, k, v: few_query_attention(q, k, v, mask=mask, scaling=WIDTH**-0.5, softcap=2.0),
        lambda q, k, v: attended_slowly(q, k, v, mask, 2.0),
    ):
        leaves = [tensor.requires_grad_() for tensor in inputs(3, 7)]
        (attend(*leaves) * normal(2, HEADS, 3, WIDTH, seed=5)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_bfloat16_scores_are_weighed_in_float32() -> None:
    query, key, value = (tensor.bfloat16() for tensor in inputs(3, 7))
    mask = torch.ones(1, 1, 3, 7, dtype=torch.bool)
    found = few_query_attention(query, key, value, mask=mask, scaling=WIDTH**-0.5)
    exact = attended_slowly(query.float(), key.float(), value.float(), mask, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0)
