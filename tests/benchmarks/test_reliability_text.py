"""Hostile texts, a short run, and the laws of `encode` over any text."""

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.faults.hostile_text import KINDS, hostile_text
from benchmarks.faults.model import tiny_embedder
from benchmarks.faults.text import TEXTS, text_faults
from promptembedder import PromptEmbedder

PLAIN = "a plain text beside the others"


@cache
def model() -> PromptEmbedder:
    return tiny_embedder()


@cache
def plain() -> np.ndarray:
    return model().encode([PLAIN], prompt="Find the same thing")[0]


def hostile() -> st.SearchStrategy[str]:
    """Any text with lone surrogates, or a kind that is known to break things; of these none very long."""
    drawn = st.integers(0, 1 << 32).map(lambda seed: hostile_text(random.Random(seed))[:3000])
    return st.one_of(st.text(st.characters(), max_size=40), drawn)


@settings(max_examples=15)
@given(texts=st.lists(hostile(), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_any_texts_have_unit_vectors_whatever_batch_order_and_padding(texts: list[str], seed: int) -> None:
    assert text_faults(model(), texts, plain(), random.Random(seed)) == []


def test_every_kind_has_unit_vectors_a_million_characters_too() -> None:
    texts = [make(random.Random(5)) for make in KINDS.values()]
    texts.append("\ud83d" * 1_000_000)
    vectors = model().encode(texts, prompt="Find the same thing")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_a_short_campaign_survives() -> None:
    for name, campaign in TEXTS.items():
        done: list[int] = []
        result = campaign(count=12, seed=2, on_done=done.append)
        assert (result.name, result.tried, result.survived, result.failures) == (name, 12, 12, ())
        assert done[-1] == 12


def test_a_vector_that_changes_beside_others_is_a_fault() -> None:
    assert text_faults(model(), ["a"], -plain(), random.Random(0)) == ["a plain text has another vector beside these"]
