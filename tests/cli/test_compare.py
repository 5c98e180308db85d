"""Laws of `promptembedder compare`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    files = {
        "corpus": [{"id": str(i), "text": f"house number {i}"} for i in range(6)],
        "queries": [{"id": f"q{i}", "text": f"number {i}"} for i in range(3)],
        "qrels": [{"query_id": f"q{i}", "doc_id": str(i), "relevance": 1} for i in range(3)],
        "alike": [{"sentence1": f"a {i}", "sentence2": f"a {i % 3}", "score": i % 4} for i in range(8)],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    search = {"name": "Search", "type": "retrieval", "metric": "ndcg_at_10", "instruction": "Find it"}
    search["files"] = {name: f"{name}.jsonl" for name in ("corpus", "queries", "qrels")}
    alike = {"name": "Alike", "type": "sts", "metric": "cosine_spearman", "instruction": "Compare"}
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([search, {**alike, "files": {"pairs": "alike.jsonl"}}]))
    return path


def test_models_and_bm25_stand_side_by_side(run: Run, saved_model: Path, tasks: Path, tmp_path: Path) -> None:
    """Each model needed a run of its own, without intervals, and nothing scored BM25."""
    words = ("compare", saved_model, "frozen:mean:random:tiny-llama", "bm25", "--tasks", tasks)
    result = run(*words, "-o", tmp_path / "scores.json", "--json")
    assert result.exit_code == 0
    models = json.loads(result.stdout.splitlines()[-1])["models"]
    assert [[score["task"] for score in own] for own in models.values()] == [["Search", "Alike"]] * 2 + [["Search"]]
    for score in (score for own in models.values() for score in own):
        assert score["low"] <= score["high"] and score["texts"] > 0 and score["seconds"] > 0
    assert json.loads((tmp_path / "scores.json").read_text()) == models
    table = run(*words).stdout
    assert "95 % interval" in table and "rows/s" in table


def test_what_cannot_be_compared_is_refused(refused: Refused, saved_model: Path, tasks: Path) -> None:
    assert "named twice" in refused("compare", "bm25", "bm25", "--tasks", tasks)
    assert "Name other models" in refused("compare", "bm25", saved_model, "--tasks", tasks, "--only", "Alike")
