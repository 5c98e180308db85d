"""Fixtures of the slow, plain reference implementation."""

from tests.plain_reference import (  # noqa: F401
    new_baseline,
    slow_tokens,
    slow_vector,
    slow_vectors,
    texts,
)
