"""Examples run and print the expected results."""

import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from promptembedder import PromptEmbedder

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "examples"
SHARED = {"notes.py", "smollm2.py"}  # that others import
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name not in SHARED)
EXPECTED = {
    "embed.py": ("(3, 32)", "1.0000"),
    "search.py": ("Why is the sky blue?\n", "How do I boil an egg?\n"),
    "cluster.py": ("Group reviews by the product\n  0  ", "  1  "),
    "duplicates.py": ("How can I reset my password?  =  How can I reset my password ?", "group: "),
    "train_matryoshka.py": ("spearman_cosine",),
    "evaluate_with_mteb.py": ("  Mock",),
    "two_instructions.py": ("Which airline?\n  @united", "Is the passenger happy or angry?\n  @united"),
    "rag_langchain_lancedb.py": ("Which function copies a directory tree?\n", "found:    ", "answer:   "),
    "rag_llama_index.py": ("Which function gives the middle value of numbers?\n", "found:    ", "answer:   "),
}


def test_every_example_has_expected_output() -> None:
    assert EXPECTED.keys() == {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_on_a_backbone(
    path: Path,
    new_model: "Callable[..., PromptEmbedder]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(path), "random:tiny-llama"] + ([str(tmp_path)] if "train" in path.stem else [])
    if path.stem.startswith(("rag", "two")):  # saved models alone
        words[1] = str(tmp_path / "model")
        new_model().save(words[1])
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third-party libraries, about tiny data
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    for text in EXPECTED[path.name]:
        assert text in printed
    if path.stem.startswith("rag"):  # without its chat template SmolLM2 returned an empty answer
        assert len(printed.split("answer:   ")[1].split()) > 3
    if "train" in path.stem:
        assert (tmp_path / "final" / "promptembedder.json").is_file()
