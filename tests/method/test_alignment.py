"""Laws of the alignments."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptembedder.errors import ConfigError
from promptembedder.method import (
    AlignmentConfig,
    LinearAlignment,
    LinearMap,
    RelaxedTokens,
    VocabularyAlignment,
    closed_form_fit,
    closed_form_map,
    procrustes_map,
    random_map,
    rescale_norm,
    ridge_map,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(dim: int, *, seed: int = 5) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed).double()).Q.float()


def test_the_ridge_map_of_equal_tables_is_near_the_identity() -> None:
    table = normal(60, 6) + 3.0
    found = ridge_map(table, table, ridge=1e-6)
    torch.testing.assert_close(found.weight, torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.bias, torch.zeros(6), atol=1e-3, rtol=0)


def test_with_a_tiny_ridge_it_is_the_least_squares_map_of_numpy() -> None:
    source, target = normal(50, 6) + 2.0, normal(50, 4, seed=1) - 1.0
    found = ridge_map(source, target, ridge=1e-12)
    with_one = np.concatenate([source.double().numpy(), np.ones((50, 1))], axis=1)
    slow = np.linalg.lstsq(with_one, target.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), slow[:-1], atol=1e-5)
    np.testing.assert_allclose(found.bias.numpy(), slow[-1], atol=1e-5)


def test_a_larger_ridge_gives_a_smaller_map_and_in_the_end_the_targets_mean() -> None:
    source, target = normal(50, 6), normal(50, 4, seed=1) - 1.0
    sizes = [float(ridge_map(source, target, ridge=ridge).weight.norm()) for ridge in (1e-6, 1e-1, 1e1, 1e9)]
    assert sizes == sorted(sizes, reverse=True)
    far = ridge_map(source, target, ridge=1e9)
    torch.testing.assert_close(source @ far.weight + far.bias, target.mean(dim=0).expand(50, -1), atol=1e-4, rtol=0)


def test_the_ridge_counts_relative_to_the_source() -> None:
    source, target = normal(50, 6), normal(50, 4, seed=1)
    near, far = ridge_map(source, target, ridge=0.1), ridge_map(1000 * source, target, ridge=0.1)
    torch.testing.assert_close(near.weight, 1000 * far.weight, atol=1e-5, rtol=1e-4)


def test_a_ridge_map_exists_with_fewer_rows_than_columns() -> None:
    found = ridge_map(normal(3, 8), normal(3, 4, seed=1))
    assert bool(torch.isfinite(found.weight).all())


@pytest.mark.parametrize("scale", [1.0, 0.2, 30.0])
def test_procrustes_recovers_a_rotation_with_its_scale_and_shift(scale: float) -> None:
    source, turn = normal(60, 6) + 1.0, rotation(6)
    target = scale * source @ turn + 4.0
    found = procrustes_map(source, target)
    torch.testing.assert_close(found.weight, scale * turn, atol=1e-5 * scale, rtol=1e-5)
    torch.testing.assert_close(source @ found.weight + found.bias, target, atol=1e-4 * max(scale, 1), rtol=1e-5)


@pytest.mark.parametrize(("dim_p", "dim_r"), [(6, 4), (4, 6), (5, 5)])
def test_a_procrustes_map_is_orthogonal_up_to_one_factor(dim_p: int, dim_r: int) -> None:
    weight = procrustes_map(normal(60, dim_p), normal(60, dim_r, seed=1)).weight
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(values, values[:1].expand(min(dim_p, dim_r)), atol=1e-5, rtol=1e-4)


def test_ridge_recovers_a_planted_map_from_noisy_rows() -> None:
    source, planted = normal(4000, 6), normal(6, 4, seed=1)
    noisy = source @ planted + 2.0 + 0.5 * normal(4000, 4, seed=2)
    found = ridge_map(source, noisy)
    torch.testing.assert_close(found.weight, planted, atol=0.05, rtol=0)
    torch.testing.assert_close(found.bias, torch.full((4,), 2.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("fit", [ridge_map, procrustes_map])
def test_a_row_of_weight_three_counts_as_three_rows(fit: Callable[..., LinearMap]) -> None:
    source, target = normal(20, 4), normal(20, 4, seed=1)
    counts = torch.tensor([1, 3] * 10)
    weighted = fit(source, target, weights=counts.float())
    repeated = fit(source.repeat_interleave(counts, dim=0), target.repeat_interleave(counts, dim=0))
    torch.testing.assert_close(weighted.weight, repeated.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weighted.bias, repeated.bias, atol=1e-5, rtol=1e-4)


def test_the_fit_says_how_well_held_out_rows_are_explained_and_how_much_they_shrink() -> None:
    source, planted, noise = normal(5000, 6), rotation(6), normal(5000, 6, seed=2)
    config = AlignmentConfig()
    exact = closed_form_fit(source, source @ planted, config, seed=0)
    assert (exact.shared_strings, round(exact.held_out_r2, 3), round(exact.norm_ratio, 3)) == (5000, 1.0, 1.0)
    half = closed_form_fit(source, source @ planted + noise, config, seed=0)  # as much noise as signal
    assert half.held_out_r2 == pytest.approx(0.5, abs=0.05)
    assert half.norm_ratio == pytest.approx(0.5**0.5, abs=0.05)
    none = closed_form_fit(source, noise, config, seed=0)
    assert none.held_out_r2 == pytest.approx(0.0, abs=0.05)
    few, many = normal(8, 6), normal(8, 6, seed=1)
    overfitted = closed_form_fit(few, many, config, seed=0)  # 8 rows fit themselves; rows beside them they do not
    assert not overfitted.held_out_r2 > 0.9


def test_a_random_map_comes_from_its_seed_and_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = random_map(6, 4, seed=1), random_map(6, 4, seed=1), random_map(6, 4, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("start", ["ridge", "procrustes", "random"])
def test_the_configuration_names_the_closed_form_which_then_keeps_the_mean_length(start: str) -> None:
    """A map between spaces that do not fit shrinks what it maps."""
    source, target = normal(50, 6), 3.0 * normal(50, 4, seed=1) - 1.0
    expected = {
        "ridge": ridge_map(source, target, ridge=0.3),
        "procrustes": procrustes_map(source, target),
        "random": random_map(6, 4, seed=7),
    }[start]
    found = closed_form_map(source, target, AlignmentConfig(start=start, ridge=0.3), seed=7)
    mapped, plain = source @ found.weight + found.bias, source @ expected.weight + expected.bias
    torch.testing.assert_close(mapped.norm(dim=-1).mean(), target.norm(dim=-1).mean())
    torch.testing.assert_close(mapped / mapped.norm(), plain / plain.norm())


def test_norm_match_gives_the_norm_and_keeps_the_direction() -> None:
    vectors = normal(3, 5, 8) * torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1)
    matched = rescale_norm(vectors, 2.5)
    torch.testing.assert_close(matched.norm(dim=-1), torch.full((3, 5), 2.5))
    torch.testing.assert_close(matched / 2.5, vectors / vectors.norm(dim=-1, keepdim=True))


def test_norm_match_of_zero_is_zero_with_a_finite_gradient() -> None:
    vectors = torch.zeros(2, 4, requires_grad=True)
    matched = rescale_norm(vectors, 2.5)
    matched.square().sum().backward()
    assert torch.equal(matched, torch.zeros(2, 4))
    assert vectors.grad is not None
    assert bool(torch.isfinite(vectors.grad).all())


def test_a_linear_alignment_is_the_formula_of_its_docstring() -> None:
    alignment = LinearAlignment(LinearMap(normal(6, 4), normal(4, seed=1)))
    with torch.no_grad():
        alignment.delta.copy_(normal(6, 4, seed=2))
    embeddings = normal(2, 5, 6, seed=3)
    soft = alignment(RelaxedTokens(embeddings, None))
    for row in range(2):
        for token in range(5):
            slow = embeddings[row, token] @ (alignment.base + alignment.delta) + alignment.bias
            torch.testing.assert_close(soft[row, token], slow, atol=1e-5, rtol=1e-5)


def test_a_new_linear_alignment_is_its_closed_form() -> None:
    start = LinearMap(normal(6, 4), normal(4, seed=1))
    embeddings = normal(2, 5, 6, seed=3)
    soft = LinearAlignment(start)(RelaxedTokens(embeddings, None))
    torch.testing.assert_close(soft, embeddings @ start.weight + start.bias)


def test_training_moves_the_difference_and_the_bias_but_not_the_closed_form() -> None:
    start = LinearMap(normal(6, 4), normal(4, seed=1))
    alignment = LinearAlignment(start)
    assert {name for name, _ in alignment.named_parameters()} == {"delta", "bias"}
    (alignment(RelaxedTokens(normal(2, 5, 6), None)) * normal(2, 5, 4, seed=1)).sum().backward()
    assert all(bool(weight.grad.abs().max() > 0) for weight in alignment.parameters())
    with torch.no_grad():
        alignment.delta.add_(1.0)
    assert torch.equal(alignment.base, start.weight)


def test_a_difference_of_low_rank_starts_at_the_closed_form_and_stays_of_that_rank() -> None:
    start = LinearMap(normal(6, 4), normal(4, seed=1))
    alignment = LinearAlignment(start, rank=2, seed=3)
    embeddings = normal(2, 5, 6, seed=3)
    torch.testing.assert_close(alignment(RelaxedTokens(embeddings, None)), embeddings @ start.weight + start.bias)
    assert {name for name, _ in alignment.named_parameters()} == {"down", "up", "bias"}
    with torch.no_grad():
        alignment.up.copy_(normal(2, 4, seed=4))
    moved = alignment(RelaxedTokens(torch.eye(6).unsqueeze(0), None))[0] - alignment.bias - start.weight
    assert int(torch.linalg.matrix_rank(moved, atol=1e-4)) == 2
    torch.testing.assert_close(moved, alignment.down @ alignment.up)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_settled_alignment_is_the_same_map_with_nothing_left_over(rank: int | None) -> None:
    alignment = LinearAlignment(LinearMap(normal(6, 4), normal(4, seed=1)), rank=rank)
    with torch.no_grad():
        for weight in alignment.parameters():
            weight.add_(normal(*weight.shape, seed=2))
    before = alignment(RelaxedTokens(normal(2, 5, 6, seed=3), None))
    alignment.merge_delta_()
    assert torch.equal(alignment(RelaxedTokens(normal(2, 5, 6, seed=3), None)), before)
    assert torch.equal(alignment.base, alignment.weight)


def test_bfloat16_tokens_are_aligned_in_float32() -> None:
    alignment = LinearAlignment(LinearMap(normal(6, 4), normal(4, seed=1)))
    embeddings = normal(2, 5, 6).bfloat16()
    soft = alignment(RelaxedTokens(embeddings, None))
    assert soft.dtype == torch.float32
    assert torch.equal(soft, alignment(RelaxedTokens(embeddings.float(), None)))


def test_the_vocabulary_alignment_is_the_mixture_of_the_readers_rows_over_shared_strings() -> None:
    weights, table = normal(2, 3, 10).softmax(dim=-1), normal(12, 4, seed=1)
    source, target = torch.tensor([1, 4, 9]), torch.tensor([11, 0, 5])
    soft = VocabularyAlignment(source, target, norm=2.0)(RelaxedTokens(torch.zeros(2, 3, 6), weights), table)
    for row in range(2):
        for token in range(3):
            mixture = sum(weights[row, token, s] * table[t] for s, t in zip(source, target, strict=True))
            torch.testing.assert_close(soft[row, token], 2.0 * mixture / mixture.norm(), atol=1e-5, rtol=1e-5)


def test_with_all_strings_shared_the_vocabulary_alignment_is_the_readers_own_relaxed_token() -> None:
    weights, table, every = normal(2, 3, 10).softmax(dim=-1), normal(10, 4, seed=1), torch.arange(10)
    soft = VocabularyAlignment(every, every, norm=2.0)(RelaxedTokens(torch.zeros(2, 3, 6), weights), table)
    torch.testing.assert_close(soft, rescale_norm(weights @ table, 2.0))


def test_mass_on_strings_that_are_not_shared_does_not_shrink_the_token() -> None:
    weights = torch.tensor([[[1e-6, 0.0, 1.0 - 1e-6]]])
    table = normal(3, 4)
    alignment = VocabularyAlignment(torch.tensor([0, 1]), torch.tensor([2, 1]), norm=2.0)
    torch.testing.assert_close(
        alignment(RelaxedTokens(torch.zeros(1, 1, 6), weights), table)[0, 0], rescale_norm(table[2], 2.0)
    )


def test_the_vocabulary_alignment_has_nothing_to_train_and_passes_gradients_on() -> None:
    logits = normal(2, 3, 10).requires_grad_()
    alignment = VocabularyAlignment(torch.arange(5), torch.arange(5), norm=2.0)
    soft = alignment(RelaxedTokens(torch.zeros(2, 3, 6), logits.softmax(dim=-1)), normal(10, 4, seed=1))
    (soft * normal(2, 3, 4, seed=2)).sum().backward()
    assert list(alignment.parameters()) == []
    assert logits.grad is not None
    assert bool(logits.grad.abs().max() > 0)


def test_the_vocabulary_alignment_refuses_tokens_without_weights() -> None:
    alignment = VocabularyAlignment(torch.arange(5), torch.arange(5), norm=2.0)
    with pytest.raises(ConfigError, match=r"'hidden' has none. Use linear"):
        alignment(RelaxedTokens(torch.zeros(1, 2, 6), None), normal(10, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "liner"}, "unknown alignment 'liner'. Use one of: linear, vocabulary"),
        ({"start": "lstsq"}, "unknown alignment start 'lstsq'. Use one of: ridge, procrustes, random"),
        ({"ridge": 0.0}, "alignment.ridge must be > 0, got 0.0. Try 1e-4"),
        ({"ridge": float("nan")}, "alignment.ridge must be > 0, got nan"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value_and_a_mend(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignmentConfig(**settings)
