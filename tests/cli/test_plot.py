"""Laws of `promptembedder plot`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from promptembedder import extras

COMPILED = "Find texts on the same topic"
RUNS = [
    {"reader": "a/b", "method": "lora-1e-3", "budget": "steps", "seed": 0, "seconds": 9.0, "mean": 60.0},
    {"reader": "a/b", "method": "promptembedder", "budget": "steps", "seed": 0, "seconds": 3.0, "mean": 70.0},
    {"reader": "a/b", "method": "frozen-mean", "budget": "none", "seed": 0, "seconds": 0.0, "mean": 40.0},
]
MEMORY = [
    {"method": "lora", "reader": "a/b", "length": 128, "batch": 8, "peak_bytes": 3 << 30},
    {"method": "lora", "reader": "a/b", "length": 512, "batch": 8, "peak_bytes": 9 << 30},
    {"method": "promptembedder", "reader": "a/b", "length": 128, "batch": 8, "peak_bytes": 1 << 30},
    {"method": "full", "reader": "a/b", "length": 128, "batch": 8, "error": "out of memory"},
]

Run = Callable[..., Result]
Refused = Callable[..., str]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_score_stands_beside_its_time_and_the_memory_of_its_method(run: Run, tmp_path: Path) -> None:
    results = write(tmp_path / "quality.json", {"settings": {"max_seq_length": 128}, "runs": RUNS})
    memory = write(tmp_path / "efficiency.json", {"rows": MEMORY})
    result = run("plot", "quality", results, "--memory", memory, "-o", tmp_path / "out" / "cost", "--json")
    files = json.loads(result.stdout)["files"]
    assert [Path(file).name for file in files] == ["cost_a-b.png", "cost_a-b.svg", "cost_a-b.csv"]
    with Path(files[2]).open(encoding="utf-8", newline="") as file:
        table = {row["method"]: row["peak_bytes"] for row in csv.DictReader(file)}
    assert table == {"lora-1e-3": str(3 << 30), "promptembedder": str(1 << 30), "frozen-mean": ""}


def test_moves_are_drawn_for_each_new_reader(run: Run, tmp_path: Path) -> None:
    rows = [
        {"from": "x", "to": "y", "method": "moved", "start": "ridge", "steps": step, "seconds": step, "mean": 50.0}
        for step in (0, 10)
    ]
    results = write(tmp_path / "move.json", {"runs": rows})
    assert run("plot", "moves", results, "-o", tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "move_to_y.csv",
        "move_to_y.png",
        "move_to_y.svg",
    ]


def test_texts_are_compared_and_mapped_under_instructions(run: Run, saved_model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"a river {place}", "kind": "ab"[place % 2]} for place in range(8)] + [{"text": "x", "kind": "c"}]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("plot", "similarity", saved_model, texts, "--limit", 4, "-o", tmp_path / "s", "--json")
    said = json.loads(run(*words).stdout)
    assert (said["texts"], said["instructions"]) == (4, [COMPILED])  # the compiled one, where none is asked for
    words = ("plot", "map", saved_model, texts, "--label-column", "kind", "--labels", 2, "--instruction", COMPILED)
    said = json.loads(run(*words, "--instruction", "Sort", "-o", tmp_path / "m", "--json").stdout)
    assert (said["texts"], said["left_out"], said["instructions"]) == (8, 1, [COMPILED, "Sort"])


def test_bad_input_is_one_line_with_the_mend(
    run: Run, refused: Refused, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "contains no readable metrics.jsonl" in refused("plot", "training", tmp_path)
    other = write(tmp_path / "other.json", {"runs": [{"reader": "a"}]})
    assert "written by python -m benchmarks quality" in refused("plot", "quality", other)
    assert "written by python -m benchmarks transfer" in refused("plot", "moves", tmp_path / "nowhere.json")
    strange = tmp_path / "texts.xyz"
    strange.write_text("?", encoding="utf-8")
    assert "texts.xyz" in refused("plot", "similarity", saved_model, strange)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one"}\n', encoding="utf-8")
    assert "--label-column" in refused("plot", "map", saved_model, texts, "--label-column", "kind")
    assert "a comparison needs 2" in refused("plot", "similarity", saved_model, texts)
    for name in ("training", "quality", "moves", "similarity", "map"):
        assert "Example: promptembedder plot" in run("plot", name, "--help").stdout

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    assert 'pip install "promptembedder[plots]"' in refused("plot", "training", tmp_path)
