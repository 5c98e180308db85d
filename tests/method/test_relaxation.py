"""Laws of the relaxations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from promptembedder.errors import ConfigError
from promptembedder.method import RELAXATIONS, RelaxationConfig, relax, relaxation_weights

LOGITS = arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(2, 12)), elements=st.floats(-40, 40, width=32))
TEMPERATURES = st.floats(0.05, 20)
WITH_WEIGHTS = [kind for kind, relaxation in RELAXATIONS.items() if relaxation.weights is not None]


def softmax_slowly(row: list[float], temperature: float) -> list[float]:
    """The plain reference, in Python's double precision."""
    scaled = [value / temperature for value in row]
    powers = [math.exp(value - max(scaled)) for value in scaled]
    return [power / sum(powers) for power in powers]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
@pytest.mark.parametrize("training", [False, True])
@given(logits=LOGITS, temperature=TEMPERATURES)
def test_weights_are_a_distribution(kind: str, training: bool, logits: np.ndarray, temperature: float) -> None:
    config = RelaxationConfig(kind=kind, temperature=temperature, top_k=3)
    weights = relaxation_weights(torch.from_numpy(logits), config, training=training)
    assert weights.shape == logits.shape
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(len(logits)))


@given(logits=LOGITS, temperature=TEMPERATURES)
def test_softmax_weights_equal_a_slow_plain_reference(logits: np.ndarray, temperature: float) -> None:
    weights = relaxation_weights(torch.from_numpy(logits), RelaxationConfig(temperature=temperature))
    slow = [softmax_slowly(row, temperature) for row in logits.tolist()]
    torch.testing.assert_close(weights, torch.tensor(slow), atol=1e-5, rtol=1e-4)


@given(rows=st.integers(1, 3), vocab=st.integers(2, 12), k=st.integers(1, 15), seed=st.integers(0, 99))
def test_top_k_is_the_softmax_over_the_k_largest_logits(rows: int, vocab: int, k: int, seed: int) -> None:
    logits = normal(rows, vocab, seed=seed)
    weights = relaxation_weights(logits, RelaxationConfig(kind="top_k", top_k=k, temperature=0.7))
    for row, given_weights in zip(logits.tolist(), weights, strict=True):
        kept = sorted(range(vocab), key=row.__getitem__, reverse=True)[:k]
        slow = torch.zeros(vocab)
        slow[kept] = torch.tensor(softmax_slowly([row[i] for i in kept], 0.7))
        assert int((given_weights != 0).sum()) == min(k, vocab)
        torch.testing.assert_close(given_weights, slow)


def test_straight_through_is_one_hot_forward() -> None:
    logits = normal(6, 11)
    weights = relaxation_weights(logits, RelaxationConfig(kind="straight_through"), training=True)
    assert torch.equal(weights, torch.nn.functional.one_hot(logits.argmax(dim=-1), 11).float())


def test_straight_through_has_the_gradient_of_softmax() -> None:
    gradients = {}
    for kind in ("softmax", "straight_through"):
        logits = normal(4, 7).requires_grad_()
        weights = relaxation_weights(logits, RelaxationConfig(kind=kind, temperature=0.5), training=True)
        (weights * normal(4, 7, seed=1)).sum().backward()
        gradients[kind] = logits.grad
    assert gradients["softmax"].abs().max() > 0.01
    torch.testing.assert_close(gradients["straight_through"], gradients["softmax"])


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_as_the_temperature_falls_the_token_becomes_the_row_of_the_most_likely_one(kind: str) -> None:
    logits, table = normal(5, 9), normal(9, 4, seed=1)
    weights = relaxation_weights(logits, RelaxationConfig(kind=kind, temperature=1e-4))
    torch.testing.assert_close(relax(weights, table), table[logits.argmax(dim=-1)])


def test_as_the_temperature_rises_the_token_becomes_the_mean_row() -> None:
    logits, table = normal(5, 9), normal(9, 4, seed=1)
    weights = relaxation_weights(logits, RelaxationConfig(temperature=1e6))
    torch.testing.assert_close(relax(weights, table), table.mean(dim=0).expand(5, -1), atol=1e-5, rtol=0)


def test_gumbel_is_noisy_in_training_only() -> None:
    logits, config = normal(3, 8), RelaxationConfig(kind="gumbel", temperature=0.5)
    noisy = [relaxation_weights(logits, config, training=True) for _ in range(2)]
    calm = [relaxation_weights(logits, config) for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*calm)
    assert torch.equal(calm[0], relaxation_weights(logits, RelaxationConfig(temperature=0.5)))


def test_gumbel_chooses_each_token_as_often_as_softmax_says() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    torch.manual_seed(0)
    config = RelaxationConfig(kind="gumbel")
    weights = relaxation_weights(logits.expand(20_000, -1), config, training=True)
    shares = weights.argmax(dim=-1).bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, logits.softmax(dim=-1), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_gradient_reaches_the_logits_through_every_relaxation(kind: str) -> None:
    logits = normal(2, 6).requires_grad_()
    weights = relaxation_weights(logits, RelaxationConfig(kind=kind, top_k=3), training=True)
    (weights * normal(2, 6, seed=1)).sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad.abs().sum(dim=-1) > 0).all())


@pytest.mark.parametrize("kind", ["softmax", "top_k", "straight_through"])
def test_bfloat16_logits_are_weighed_in_float32(kind: str) -> None:
    """A softmax in bfloat16 over 50 000 entries loses the tail, where much of the mass is."""
    logits, config = normal(2, 5000).bfloat16(), RelaxationConfig(kind=kind)
    weights = relaxation_weights(logits, config)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, relaxation_weights(logits.float(), config))


@pytest.mark.parametrize("scale", [1.0, 6.5])
def test_a_one_hot_weight_gives_the_row_times_the_scale(scale: float) -> None:
    table = normal(9, 4)
    weights = torch.eye(9)[[3, 0, 8]]
    torch.testing.assert_close(relax(weights, table, scale=scale), scale * table[[3, 0, 8]])


def test_the_relaxation_hidden_has_no_weights() -> None:
    with pytest.raises(ConfigError, match=r"'hidden' has no vocabulary weights. Use one of: softmax, top_k"):
        relaxation_weights(normal(2, 5), RelaxationConfig(kind="hidden"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "softmaxx"}, "unknown relaxation 'softmaxx'. Use one of: softmax, .*hidden"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0. Try 1.0"),
        ({"temperature": -1.0}, "temperature must be > 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be > 0, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0. Try 64"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value_and_a_mend(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RelaxationConfig(**settings)
