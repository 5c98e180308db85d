"""Laws of `python -m benchmarks quality` and `bench report`: real runs, at a scale of seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Refused = Callable[..., str]

NAMES = [
    "quality.csv",
    "quality.json",
    "quality.md",
    "quality_by_task_random-tiny-llama.png",
    "quality_by_task_random-tiny-llama.svg",
    "quality_over_time_random-tiny-llama.png",
    "quality_over_time_random-tiny-llama.svg",
]


@pytest.fixture
def tiny(benchmark_files: Path, tmp_path: Path) -> list[object]:
    """The command's words; the last ones name where its runs and results go."""
    files = ["--mixture", benchmark_files / "mixture.json", "--tasks", benchmark_files / "tasks.json"]
    sizes = ["--steps", "2", "--batch-size", "4", "--max-length", "16", "--curve-points", "1", "--held-out", "4"]
    models = ["--readers", "random:tiny-llama", "--prompter", "random:tiny-llama", "--dtype", "float32"]
    places = ["--work", tmp_path / "runs", "-o", tmp_path / "out"]
    return ["quality", *files, *sizes, *models, *places]


def test_the_command_writes_what_it_says_and_the_report_puts_it_into_a_document(
    run: Run, tiny: list[object], tmp_path: Path
) -> None:
    result = run(*tiny, "--methods", "promptembedder,lora-1e-3,frozen-mean", "--timed", "", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert sorted(said.pop("files")) == [str(out / name) for name in NAMES]
    assert json.loads((out / "quality.json").read_text()) == said
    assert {one["method"]: (one["budget"], one["steps"]) for one in said["runs"]} == {
        "promptembedder": ("steps", 2),
        "lora-1e-3": ("steps", 2),
        "frozen-mean": ("none", 0),
    }
    for one in said["runs"]:
        assert {"method", "reader", "budget", "steps", "seconds", "seed", "scores", "mean"} <= one.keys()
        assert set(one["held_out"]) == {"seen", "unseen", "empty", "others"}
    assert said["settings"]["mixture"] == "mixture.json"

    document = tmp_path / "results.md"
    document.write_text("before\n<!-- quality -->\nold\n<!-- end quality -->\nafter\n")
    assert run("report", document, "--results", out).exit_code == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert (out / "quality.md").read_text().strip() in text


def test_runs_of_other_settings_are_never_mixed(run: Run, tiny: list[object], tmp_path: Path) -> None:
    one = [*tiny, "--methods", "frozen-mean", "--timed", ""]
    assert run(*one).exit_code == 0
    for words, message in (((), "holds a run of other settings"), (("--work", tmp_path / "new"), "max_seq_length 16")):
        result = run(*one, "--max-length", "8", *words)
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "0,x"), "--seeds must be whole numbers separated by commas, got '0,x'"),
        (("--methods", "promptembeder"), "Did you mean 'promptembedder'?"),
        (("--tasks", "no/tasks.json"), "no/tasks.json"),
        (("--mixture", "no/mixture.json"), "no/mixture.json"),
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("--readers", "no-such"), "unknown backbone 'no-such'"),
    ],
)
def test_bad_input_is_one_line(refused: Refused, tiny: list[object], words: tuple[str, ...], message: str) -> None:
    assert message in refused(*tiny, "--methods", "frozen-mean", "--timed", "", *words)


def test_a_report_without_markers_or_results_is_refused(refused: Refused, tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    assert "cannot read" in refused("report", document)
    document.write_text("nothing to fill\n")
    assert "no marker that fits" in refused("report", document, "--results", tmp_path)
    assert document.read_text() == "nothing to fill\n"
