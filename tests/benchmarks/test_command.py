"""Laws of `python -m benchmarks efficiency`."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from benchmarks.efficiency import benchmark as efficiency_benchmark
from benchmarks.efficiency import step as efficiency_step
from benchmarks.efficiency.step import StepMeter

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Refused = Callable[..., str]

NAMES = [
    "efficiency.csv",
    "efficiency.journal.jsonl",
    "efficiency.json",
    "efficiency.md",
    "efficiency_memory.png",
    "efficiency_memory.svg",
    "efficiency_step_time.png",
    "efficiency_step_time.svg",
]
TINY = ("efficiency", "--reader", "random:tiny-llama", "--lengths", "8,16", "--batches", "2,4")
TINY = (*TINY, "--methods", "promptembedder,lora", "--repeats", "2", "--dtype", "float32", "--device", "cpu")


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> list[StepMeter]:
    """Measures in this process; the meters that were started. Processes have their own test."""
    started: list[StepMeter] = []

    def start(model: object, limit_bytes: object) -> StepMeter:
        started.append(StepMeter(model))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(efficiency_step, "release_memory", lambda device: None)  # takes longer than a tiny step
    monkeypatch.setattr(
        efficiency_benchmark, "run_efficiency", functools.partial(efficiency_benchmark.run_efficiency, start=start)
    )
    return started


def test_the_command_writes_what_it_says_and_measures_nothing_twice(
    run: Run, meters: list[StepMeter], tmp_path: Path
) -> None:
    result = run(*TINY, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES
    assert sorted(said["files"]) == [str(tmp_path / "out" / name) for name in NAMES if "journal" not in name]
    assert len(said["rows"]) == 8
    assert {row["method"] for row in said["ratios"]} == {"lora"}
    written = json.loads((tmp_path / "out" / "efficiency.json").read_text())
    assert written == {name: value for name, value in said.items() if name != "files"}
    count = len(meters)
    result = run(*TINY, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert len(meters) == count
    assert "x: over promptembedder" in result.stdout
    assert result.stderr == ""


def test_a_file_of_options_may_hold_lists(run: Run, meters: list[StepMeter], tmp_path: Path) -> None:
    config = tmp_path / "bench.yaml"
    content = {"reader": "random:tiny-llama", "lengths": [8], "batches": [2], "methods": ["static"], "repeats": 1}
    config.write_text(json.dumps({**content, "output": str(tmp_path / "out"), "device": "cpu"}))
    said = json.loads(run("efficiency", "--config", config, "--json").stdout)
    assert [(row["method"], row["length"], row["batch"]) for row in said["rows"]] == [("static", 8, 2)]


def test_bad_input_is_one_line_and_exit_code_2(refused: Refused, meters: list[StepMeter], tmp_path: Path) -> None:
    def refusal(*words: object) -> str:
        return refused(*TINY, "-o", tmp_path / "out", *words)

    assert "unknown method 'lorra'. Did you mean 'lora'?" in refusal("--methods", "promptembedder,lorra")
    assert "--lengths must be whole numbers" in refusal("--lengths", "8,many")
    assert "batches must be numbers from 2" in refusal("--batches", "1")
    assert "unknown backbone 'no-such'" in refusal("--reader", "no-such")
    assert "no random model is named 'nothing'" in refusal("--prompter", "random:nothing")
    assert "unknown device 'tpu'" in refusal("--device", "tpu")
    assert "repeats must be at least 1" in refusal("--repeats", "0")
    assert meters == []
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib_is_told_before_anything_is_measured(
    refused: Refused, meters: list[StepMeter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(*TINY, "-o", tmp_path / "out")
    assert 'matplotlib is not installed. Run: pip install "promptembedder[bench]"' in line
    assert meters == []
