"""The diagnostics tell collapse from life."""

import math

import pytest
import torch

from promptembedder.method import RelaxedTokens, soft_token_diagnostics


def tokens_of(weights: torch.Tensor | None, *, prompt: int = 3) -> RelaxedTokens:
    return RelaxedTokens(torch.zeros(2, prompt, 4), weights)


def test_entropy_is_log_vocab_for_uniform_weights_and_zero_for_one_hot_ones() -> None:
    soft = torch.randn(2, 3, 5)
    uniform = soft_token_diagnostics(tokens_of(torch.full((2, 3, 11), 1 / 11)), soft, mean_embedding_norm=1.0)
    one_hot = soft_token_diagnostics(tokens_of(torch.eye(11)[:6].reshape(2, 3, 11)), soft, mean_embedding_norm=1.0)
    assert uniform["soft_token_entropy"] == pytest.approx(math.log(11), abs=1e-5)
    assert one_hot["soft_token_entropy"] == pytest.approx(0.0, abs=1e-6)


def test_the_norm_ratio_is_the_mean_length_over_the_tables() -> None:
    soft = torch.zeros(1, 2, 5)
    soft[0, 0, 0], soft[0, 1, 3] = 2.0, -4.0
    assert soft_token_diagnostics(tokens_of(None), soft, mean_embedding_norm=6.0)[
        "soft_token_norm_ratio"
    ] == pytest.approx(0.5)


def test_the_cosine_is_the_mean_over_pairs_of_different_tokens() -> None:
    soft = torch.tensor([[[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]])  # pairs: 1, 0, 0
    assert soft_token_diagnostics(tokens_of(None), soft, mean_embedding_norm=1.0)["soft_token_cosine"] == pytest.approx(
        1 / 3
    )


def test_a_constant_prompter_has_cosine_one_and_no_variance_between_instructions() -> None:
    soft = torch.randn(1, 3, 5).expand(4, -1, -1)
    report = soft_token_diagnostics(tokens_of(None), soft, mean_embedding_norm=1.0)
    assert report["instruction_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert report["instruction_variance"] == pytest.approx(0.0, abs=1e-6)


def test_opposite_tokens_of_two_instructions_have_cosine_minus_one_and_all_variance() -> None:
    one = torch.randn(1, 3, 5)
    report = soft_token_diagnostics(tokens_of(None), torch.cat([one, -one]), mean_embedding_norm=1.0)
    assert report["instruction_cosine"] == pytest.approx(-1.0, abs=1e-5)
    assert report["instruction_variance"] == pytest.approx(1.0, abs=1e-5)


def test_what_cannot_be_measured_is_left_out() -> None:
    report = soft_token_diagnostics(tokens_of(None, prompt=1), torch.ones(1, 1, 5), mean_embedding_norm=1.0)
    assert set(report) == {"soft_token_norm_ratio"}


def test_no_graph_is_kept() -> None:
    soft = torch.randn(2, 3, 5, requires_grad=True)
    report = soft_token_diagnostics(tokens_of(torch.full((2, 3, 11), 1 / 11)), soft, mean_embedding_norm=1.0)
    assert all(type(value) is float for value in report.values())
