"""Laws of `promptembedder mteb`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]


def test_unknown_task_is_one_line(refused: Refused, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mteb run -t Nope` ended in a KeyError."""
    monkeypatch.setattr(sys, "argv", ["promptembedder"])
    line = refused("mteb", "run", "-m", saved_model, "-t", "STSBenchmrk")
    assert "'STSBenchmrk' not found. Did you mean: 'STSBenchmark'? List the names: mteb available-tasks" in line
