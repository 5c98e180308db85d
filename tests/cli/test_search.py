"""Laws of `promptembedder search`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder

pytestmark = pytest.mark.slow

COMPILED = "Find texts on the same topic"
QUERY_PROMPT = "Find the text that answers the question"  # saved with the model

Run = Callable[..., Result]
Refused = Callable[..., str]


def texts_in(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("words", "query_prompt", "document_prompt"),
    [
        ((), QUERY_PROMPT, "Represent the text for retrieval"),
        (("--instruction", f" {COMPILED}"), COMPILED, "Represent the text for retrieval"),
        (("--instruction", "x", "--document-instruction", "y"), "x", "y"),
        (("--instruction", "", "--document-instruction", " "), QUERY_PROMPT, "Represent the text for retrieval"),
    ],
    ids=["saved", "query", "both", "blank"],
)
def test_hits_are_those_of_a_slow_plain_reference(
    run: Run, saved_model: Path, corpus: Path, words: tuple[str, ...], query_prompt: str, document_prompt: str
) -> None:
    result = run("search", saved_model, "where does it end?", "--corpus", corpus, "-k", "4", *words, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)  # nothing else is on stdout
    assert (said["query"], said["instruction"], said["documents"]) == ("where does it end?", query_prompt, 7)
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    texts = texts_in(corpus)
    query = model.encode(["where does it end?"], prompt=query_prompt)[0]
    scores = [float(model.encode([text], prompt=document_prompt)[0] @ query) for text in texts]
    expected = sorted(range(len(texts)), key=lambda row: (-round(scores[row], 5), row))[:4]
    assert [(hit["rank"], hit["id"], hit["text"]) for hit in said["hits"]] == [
        (rank, f"doc-{row}", texts[row]) for rank, row in enumerate(expected, start=1)
    ]
    np.testing.assert_allclose([hit["score"] for hit in said["hits"]], [scores[row] for row in expected], atol=1e-5)


def test_printed_hits_contain_no_control_characters(run: Run, saved_model: Path, corpus: Path) -> None:
    result = run("search", saved_model, "two lines", "--corpus", corpus, "--k", "7")
    assert result.exit_code == 0
    assert "7 texts" in result.stdout
    assert "two lines, [bold] [31mred" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_narrow_terminal_shows_rank_score_and_id(
    run: Run, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns a long text left no room for rank, score and id."""
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"id": "doc-1", "text": "word " * 100}) + "\n")
    result = run("search", saved_model, "word", "--corpus", path)
    first = next(line for line in result.stdout.splitlines() if "word" in line)
    assert re.search(r"1 .* -?[01]\.\d{4} .*doc-1 .*word", first)
    assert "1 text," in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_prompter_is_not_loaded_if_both_instructions_are_compiled(
    run: Run, saved_model: Path, corpus: Path, loaded: list[PromptEmbedder]
) -> None:
    words = ("search", saved_model, "x", "--corpus", corpus, "--document-instruction", COMPILED)
    assert run(*words, "--instruction", COMPILED).exit_code == 0
    assert loaded[-1].encoder.prompter is None
    assert run(*words).exit_code == 0
    assert loaded[-1].encoder.prompter is not None


def test_bad_input_is_one_line_and_exit_code_2_before_a_model_is_loaded(
    refused: Refused, saved_model: Path, corpus: Path, tmp_path: Path, loaded: list[PromptEmbedder]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert "is not a saved model" in refused("search", tmp_path / "nowhere", "x", "--corpus", corpus)
    assert "does not exist" in refused("search", saved_model, "x", "--corpus", tmp_path / "missing.txt")
    assert "holds no rows" in refused("search", saved_model, "x", "--corpus", empty)
    assert "no column 'words'" in refused("search", saved_model, "x", "--corpus", corpus, "--text-column", "words")
    assert "query is blank" in refused("search", saved_model, " ", "--corpus", corpus)
    assert loaded == []


def test_unknown_keys_and_zero_k_are_refused(run: Run, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    config = tmp_path / "search.yaml"
    config.write_text("hits: 3\n")
    for words, named in ((("--config", config), "hits"), (("-k", 0), "-k")):
        result = run("search", saved_model, "x", "--corpus", corpus, *words)
        assert result.exit_code == 2
        assert named in result.stderr


def test_a_file_of_options_does_what_the_options_do(run: Run, saved_model: Path, corpus: Path, tmp_path: Path) -> None:
    config = tmp_path / "search.yaml"
    config.write_text(json.dumps({"model": str(saved_model), "corpus": str(corpus), "k": 2, "query": "x"}))
    assert len(json.loads(run("search", "--config", config, "--json").stdout)["hits"]) == 2
