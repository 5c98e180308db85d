"""Laws of `promptembedder train` without a recipe: a table is enough."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder

Run = Callable[..., Result]
Refused = Callable[..., str]
WORDS = ("--backbone", "random:tiny-llama", "--instruction", "Find the answer", "--set", "optim.batch_size=4")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    rows = [f"what is {place} and one,it is {place + 1}" for place in range(40)]
    path.write_text("\n".join(["question,answer", *rows]) + "\n")
    return path


def test_a_table_of_two_columns_is_enough(run: Run, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    result = run("train", "--data", table, *WORDS, "-o", output, "--steps", "3", "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout.splitlines()[-1])
    assert (said["model"], said["steps"], said["train_pairs"]) == (str(output), 3, 40)
    assert "queries are in column 'question', their texts in 'answer'" in result.stderr
    model = PromptEmbedder.from_pretrained(output, device="cpu")
    assert "Find the answer" in (output / "recipe.yaml").read_text()
    vectors = model.encode_query(["what is 2 and one"])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_trackers_get_what_the_metrics_file_gets(run: Run, table: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "mine"
    words = ("--steps", "4", "--set", "run.log_every=2", "--report-to", "tensorboard")
    assert run("train", "--data", table, *WORDS, "-o", output, *words).exit_code == 0
    (events,) = {path.parent for path in output.rglob("events.out.tfevents.*")}
    tracked = EventAccumulator(str(events)).Reload().Scalars("train/loss")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    expected = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {event.step: pytest.approx(event.value, rel=1e-5) for event in tracked} == expected
    assert len(expected) == 2


def test_nothing_is_tracked_unless_asked_for(run: Run, table: Path, tmp_path: Path) -> None:
    assert run("train", "--data", table, *WORDS, "-o", tmp_path / "mine", "--steps", "1").exit_code == 0
    assert list((tmp_path / "mine").rglob("events.*")) == []


def test_bad_words_are_one_line(refused: Refused, table: Path, tmp_path: Path) -> None:
    assert "Name a recipe, or a table of pairs with --data FILE" in refused("train")
    words = ("train", "--data", table, *WORDS, "-o", tmp_path / "mine", "--steps", "1")
    assert "unknown run.report_to 'comet'. Use one of: tensorboard" in refused(*words, "--report-to", "comet")
    assert "row 1 has no 'title': found 'question', 'answer'" in refused(*words, "--columns", "title,answer")
    (tmp_path / "three.csv").write_text("a,b,c\n1,2,3\n")
    assert "has no 'anchor': found 'a', 'b', 'c'" in refused("train", "--data", tmp_path / "three.csv", *WORDS)
    assert not (tmp_path / "mine").exists()


def test_a_tracker_that_is_not_installed_is_told_with_its_install_line(
    refused: Refused, table: Path, tmp_path: Path
) -> None:
    words = ("train", "--data", table, *WORDS, "-o", tmp_path / "mine", "--steps", "1")
    assert "wandb is not installed. Run: pip install wandb" in refused(*words, "--report-to", "wandb")
