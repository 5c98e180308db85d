"""Laws of `python -m benchmarks transfer`: real runs, at a scale of seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Refused = Callable[..., str]
ROUTE = "random:tiny-llama>random:tiny-qwen3"


@pytest.fixture
def tiny(benchmark_files: Path, tmp_path: Path) -> list[object]:
    """The command's words; the last ones name where its runs and results go."""
    files = ["--mixture", benchmark_files / "mixture.json", "--tasks", benchmark_files / "tasks.json"]
    sizes = ["--source-steps", "2", "--points", "0,1,2", "--batch-size", "4", "--max-length", "16", "--held-out", "4"]
    models = ["--routes", ROUTE, "--prompter", "random:tiny-llama", "--dtype", "float32"]
    return ["transfer", *files, *sizes, *models, "--work", tmp_path / "runs", "-o", tmp_path / "out"]


def test_every_way_is_scored_at_every_point_and_a_second_call_reads_what_the_first_one_found(
    run: Run, refused: Refused, tiny: list[object], tmp_path: Path
) -> None:
    words = [*tiny, "--starts", "ridge,random", "--native", "promptembedder,lora-1e-3", "--json"]
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    out = tmp_path / "out"
    files = said.pop("files")
    assert sorted(Path(name).name for name in files) == sorted(path.name for path in out.iterdir())
    assert json.loads((out / "move.json").read_text()) == said
    rows = said["runs"]
    ways = [(row["method"], row["start"]) for row in rows]
    assert list(dict.fromkeys(ways)) == [
        ("moved", "ridge"),
        ("moved", "random"),
        ("promptembedder", None),
        ("lora-1e-3", None),
    ]
    for way in ways:
        own = [row for row in rows if (row["method"], row["start"]) == way]
        assert [row["steps"] for row in own] == [0, 1, 2]
        assert own[0]["seconds"] == own[0]["trained_bytes"] == 0
        assert own[1]["seconds"] < own[2]["seconds"]
        assert own[2]["trained_bytes"] > 0
        for row in own:
            assert set(row["scores_seen"]) == {"held-out"}
            assert set(row["scores_unseen"]) > {"held-out"}
    by_way = {way: [row["trained_bytes"] for row in rows if (row["method"], row["start"]) == way][-1] for way in ways}
    assert by_way["moved", "ridge"] < by_way["promptembedder", None]

    again = run(*words)
    assert "training the model to move" in result.stdout + result.stderr
    assert "training the model to move" not in again.stdout + again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["runs"] == rows

    assert "holds a run of other settings" in refused(*words, "--limit", "3")

    document = tmp_path / "results.md"
    document.write_text("<!-- move -->\nold\n<!-- end move -->\n")
    assert run("report", document, "--results", out).exit_code == 0
    assert "moved from random:tiny-llama, ridge" in document.read_text()


@pytest.mark.minutes
def test_a_run_cut_off_between_its_model_and_its_scores_is_made_again(
    run: Run, tiny: list[object], tmp_path: Path
) -> None:
    words = [*tiny, "--starts", "random", "--native", "promptembedder", "--json"]
    whole = json.loads(run(*words).stdout.splitlines()[-1])["runs"]
    for name in ("source-random-tiny-llama-s0", "random-tiny-qwen3-promptembedder-s0"):
        (tmp_path / "runs" / name / "result.json").unlink()
    (tmp_path / "runs" / "random-tiny-llama-random-tiny-qwen3-moved-random-s0" / "result.json").unlink()
    again = json.loads(run(*words).stdout.splitlines()[-1])["runs"]
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in whole]


@pytest.mark.minutes
def test_commands_of_the_same_settings_fill_one_file(run: Run, tiny: list[object], tmp_path: Path) -> None:
    one = [*tiny, "--only", "Alike", "--native", "promptembedder"]
    assert run(*one, "--starts", "random").exit_code == 0
    second = run(*one, "--starts", "ridge", "--json")
    content = json.loads(second.stdout.splitlines()[-1])
    assert {row["start"] for row in content["runs"]} == {"random", "ridge", None}
    assert {task for row in content["runs"] for task in row["scores_unseen"]} == {"Alike", "held-out"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--routes", "random:tiny-llama"), "a route is FROM>TO, got 'random:tiny-llama'"),
        (("--starts", "magic"), "unknown start 'magic'"),
        (("--native", "frozen-mean"), "'frozen-mean' is not trained"),
        (("--points", "5,3"), "points must rise"),
        (("--only", "Nothing"), "has no task 'Nothing'"),
        (("--source-steps", "0"), "source_steps must be at least 1"),
        (("--routes", "random:tiny-llama>smollm9"), "unknown backbone 'smollm9'"),
        (("--mixture", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_words_are_one_line(words: tuple[str, ...], message: str, refused: Refused, tiny: list[object]) -> None:
    assert message in refused(*tiny, *words)
