"""Alignments of the deeper layers, which add nothing at first, against their formulas written out."""

import pytest
import torch
from torch import Tensor

from promptembedder.method import DeepAlignment, RelaxedTokens

DIM_P, DIM_R, DEPTHS, PROMPT, RANK = 5, 6, 3, 4, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for seed, weight in enumerate(module.parameters(), start=1):
            weight.copy_(random(*weight.shape, seed=seed))
    return module


def at_rms_one(vector: Tensor) -> Tensor:
    return vector / vector.square().mean().sqrt()


# -- the deeper alignments --------------------------------------------------------------------------------------------


@pytest.fixture
def deep() -> DeepAlignment:
    return DeepAlignment(dim_p=DIM_P, dim_r=DIM_R, depths=DEPTHS, prompt=PROMPT, rank=RANK)


def test_new_deeper_alignments_add_nothing(deep: DeepAlignment) -> None:
    assert torch.equal(deep(RelaxedTokens(random(2, PROMPT, DIM_P), None)), torch.zeros(2, PROMPT, DEPTHS * DIM_R))


def test_each_depth_has_a_map_of_its_own_and_each_of_its_tokens_a_bias(deep: DeepAlignment) -> None:
    moved(deep)
    tokens = random(2, PROMPT, DIM_P)
    found = deep(RelaxedTokens(tokens, None))
    for row in range(2):
        for place in range(PROMPT):
            unit = at_rms_one(tokens[row, place])
            by_hand = [unit @ deep.down @ deep.up[depth] + deep.bias[depth, place] for depth in range(DEPTHS)]
            torch.testing.assert_close(found[row, place], torch.cat(by_hand), atol=1e-5, rtol=1e-5)


def test_new_deeper_alignments_have_a_gradient_but_hand_none_on(deep: DeepAlignment) -> None:
    """At zero they cannot disturb the prompter; the ways up must move all the same, and then everything does."""
    tokens = random(2, PROMPT, DIM_P).requires_grad_()
    for is_new in (True, False):
        deep.zero_grad()
        tokens.grad = None
        (deep(RelaxedTokens(tokens, None)) * random(2, PROMPT, DEPTHS * DIM_R, seed=1)).sum().backward()
        assert bool(deep.up.grad.abs().min() > 0)
        assert bool(deep.bias.grad.abs().min() > 0)
        assert bool(deep.down.grad.any()) == bool(tokens.grad.any()) == (not is_new)
        moved(deep)


def test_the_way_down_is_drawn_from_the_seed_alone_and_no_wider_than_what_comes_in() -> None:
    def down(rank: int, seed: int) -> Tensor:
        return DeepAlignment(dim_p=DIM_P, dim_r=DIM_R, depths=DEPTHS, prompt=PROMPT, rank=rank, seed=seed).down

    before = torch.get_rng_state()
    assert torch.equal(down(RANK, 1), down(RANK, 1))
    assert not torch.equal(down(RANK, 1), down(RANK, 2))
    assert down(64, 1).shape == (DIM_P, DIM_P)
    assert torch.equal(torch.get_rng_state(), before)
