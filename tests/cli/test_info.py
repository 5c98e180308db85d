"""`promptembedder info`: what a saved model is, and whether its prompter tells instructions apart."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from promptembedder import PromptEmbedder


def test_info_names_the_backbones_without_loading_them(run: Callable[..., Result], saved_model: Path) -> None:
    shown = run("info", saved_model).stdout
    assert "random:tiny" in shown
    assert "instruction cosine" not in shown


def test_diagnose_shows_the_cosine_between_reference_instructions(
    run: Callable[..., Result], saved_model: Path, loaded: list[PromptEmbedder]
) -> None:
    assert "instruction cosine" in run("info", saved_model, "--diagnose").stdout
    content = json.loads(run("info", saved_model, "--diagnose", "--json").stdout.splitlines()[-1])
    expected = PromptEmbedder.from_pretrained(str(saved_model)).encoder.diagnose()
    assert content["diagnostics"] == pytest.approx(expected)
    assert -1 <= content["diagnostics"]["instruction_cosine"] <= 1


def test_a_prompter_that_ignores_the_instruction_has_a_cosine_of_one(saved_model: Path) -> None:
    encoder = PromptEmbedder.from_pretrained(str(saved_model)).encoder
    report = encoder.diagnose(["the same instruction", " the same instruction"])
    assert report["instruction_cosine"] == pytest.approx(1, abs=1e-3)
    assert report["instruction_variance"] == pytest.approx(0, abs=1e-3)
