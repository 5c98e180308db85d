"""Laws of `promptembedder train` without a recipe: a table is enough."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder

pytestmark = pytest.mark.slow

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
    assert "query column: 'question', text column: 'answer'" in result.stderr
    assert list(output.rglob("events.*")) == []  # no tracker by default
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


def test_invalid_options_are_one_line_errors(refused: Refused, table: Path, tmp_path: Path) -> None:
    assert "Give a recipe, or a table of pairs with --data FILE" in refused("train")
    words = ("train", "--data", table, *WORDS, "-o", tmp_path / "mine", "--steps", "1")
    assert "unknown run.report_to 'comet'. Use one of: tensorboard" in refused(*words, "--report-to", "comet")
    assert "row 1 has no 'title': found 'question', 'answer'" in refused(*words, "--columns", "title,answer")
    (tmp_path / "three.csv").write_text("a,b,c\n1,2,3\n")
    assert "has no 'anchor': found 'a', 'b', 'c'" in refused("train", "--data", tmp_path / "three.csv", *WORDS)
    assert not (tmp_path / "mine").exists()


def test_missing_tracker_error_contains_the_install_command(refused: Refused, table: Path, tmp_path: Path) -> None:
    words = ("train", "--data", table, *WORDS, "-o", tmp_path / "mine", "--steps", "1")
    assert "wandb is not installed. Run: pip install wandb" in refused(*words, "--report-to", "wandb")


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_training_refuses_a_folder_of_other_files(
    refused: Refused, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: tuple[str, ...]
) -> None:
    """`--output d` and `--output .` overwrote files of a folder that is neither a model nor a run."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    monkeypatch.chdir(folder)
    for output in (str(folder), "."):
        line = refused("train", "--data", table, *WORDS, "-o", output, "--steps", "1", *overwrite)
        assert "contains other files" in line
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text() == "mine"


def test_training_refuses_a_blank_output(refused: Refused, table: Path) -> None:
    """A blank `--output` was the current folder."""
    assert "output folder is blank" in refused("train", "--data", table, *WORDS, "-o", "", "--steps", "1")
    assert "output folder is blank" in refused("transfer", "m", "--to", "random:tiny-gpt2", "-o", "")
    assert "output folder is blank" in refused("quickstart", "-o", "")


def test_a_saved_model_is_trained_further_on_another_table(
    run: Run, refused: Refused, table: Path, tmp_path: Path
) -> None:
    """There was no way to go on with a trained model on new data."""
    assert run("train", "--data", table, *WORDS, "-o", tmp_path / "first", "--steps", "1").exit_code == 0
    words = ("train", "--data", table, *WORDS[2:], "--from", tmp_path / "first", "-o", tmp_path / "second")
    result = run(*words, "--epochs", "0.2", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 2  # of 40 rows in batches of 4
    assert "Omit --backbone" in refused(*words, "--backbone", "random:tiny-llama")
    assert "Give one of them" in refused(*words, "--steps", "3", "--epochs", "1")


def test_next_line_quotes_a_path_with_spaces(run: Run, table: Path, tmp_path: Path) -> None:
    """The printed command could not be copied if the path had spaces."""
    output = tmp_path / "my model"
    result = run("train", "--data", table, *WORDS, "-o", output, "--steps", "1")
    assert f"promptembedder search '{output}'" in result.stdout


def test_trained_instructions_are_the_defaults_of_the_model(run: Run, table: Path, tmp_path: Path) -> None:
    """The saved prompts were blank, so that search, embed and encode_query used an instruction unknown to training."""
    output = tmp_path / "mine"
    documents = ("--set", "data.document_instructions=[Represent the answer]")
    result = run(
        "train", "--data", table, *WORDS, "--instruction", "Answer it", *documents, "-o", output, "--steps", "1"
    )
    assert result.exit_code == 0
    assert "Find the answer" in result.stdout
    model = PromptEmbedder.from_pretrained(output, device="cpu")
    assert model.prompts == {"query": "Find the answer", "document": "Represent the answer"}
    texts = ["what is 2 and one"]
    query = model.encode(texts, prompt="Find the answer")
    document = model.encode(texts, prompt="Represent the answer")
    assert np.array_equal(model.encode_query(texts), query)
    assert np.array_equal(model.encode_document(texts), document)
    assert np.array_equal(model.encode(texts), document)
    searched = run("search", output, "what is 2", "--corpus", table, "--text-column", "answer", "--json")
    assert json.loads(searched.stdout)["instruction"] == "Find the answer"
    embedded = run("embed", output, table, "--text-column", "answer", "-o", tmp_path / "vectors", "--json")
    assert json.loads(embedded.stdout)["columns"] == {"embedding": "Represent the answer"}


def test_next_line_of_a_mixture_contains_one_of_its_instructions(
    run: Run, benchmark_files: Path, tmp_path: Path
) -> None:
    """Tasks with different instructions give no default, and the printed search used one unknown to training."""
    words = ("--backbone", "random:tiny-llama", "--steps", "1", "--set", "optim.batch_size=4")
    output = tmp_path / "mine"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}\n")
    result = run("train", recipe, "--mixture", benchmark_files / "mixture.json", *words, "-o", output)
    assert result.exit_code == 0
    assert "--instruction 'Find what one says'" in result.stdout
    assert PromptEmbedder.from_pretrained(output, device="cpu").prompts == {"query": "", "document": ""}


def test_pairs_that_teach_nothing_are_refused(run: Run, refused: Refused, tmp_path: Path) -> None:
    """A file without a header row, a column paired with itself and identical pairs trained without a word."""
    path = tmp_path / "pairs.csv"
    words = ("train", "--data", path, *WORDS, "-o", tmp_path / "mine", "--steps", "1")
    path.write_text("how do I pay?,By card\nwhere am I?,Here\n")
    assert "Begin the file with a row of names" in refused(*words)
    path.write_text("question;answer\n" + "how do I pay?;By card\n" * 60)
    result = run(*words)
    assert result.exit_code == 2
    assert "task 'pairs' has one distinct query in 60 pairs" in result.stderr
    assert "each another column, got ['answer', 'answer']" in refused(*words, "--columns", "answer,answer")
    path.write_bytes("question~answer\nwer zahlt?~Müller\nwer nicht?~Mayer\n".encode("cp1252"))
    assert "not UTF-8" in refused(*words, "--delimiter", "~")
    path.write_bytes("question~answer\nwer zahlt?~Müller\n".encode("cp1252"))
    assert "one distinct query in 1 pair" in run(*words, "--delimiter", "~", "--encoding", "cp1252").stderr
    assert not (tmp_path / "mine").exists()
