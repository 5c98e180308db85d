"""Laws of `promptembedder evaluate`."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder
from promptembedder.batch import VectorFormat
from promptembedder.errors import SaveError
from promptembedder.evaluation import read_tasks, score_tasks

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Refused = Callable[..., str]

COLOURS, SIZES = ("red", "blue"), ("large", "small", "tiny", "huge")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A similarity task of 12 pairs and two classification tasks over 16 texts."""
    pairs = [{"sentence1": f"a {row}", "sentence2": f"b {row * row}", "score": row % 6} for row in range(12)]
    texts = [
        {"text": f"{colour} {size} {row}", "label": colour, "size": size, "split": split}
        for split in ("train", "test")
        for row in range(2)
        for colour in COLOURS
        for size in SIZES
    ]
    rows = {"files": {"rows": write_rows(tmp_path / "rows.jsonl", texts)}, "split": "test", "train_split": "train"}
    tasks = [
        {
            **{"name": "Pairs[1]", "type": "sts", "metric": "cosine_spearman", "instruction": "Compare"},
            "files": {"pairs": write_rows(tmp_path / "pairs.jsonl", pairs)},
        },
        {"name": "Colour", "type": "classification", "metric": "accuracy", "instruction": "Which colour?", **rows},
        {
            **{"name": "Size", "type": "classification", "metric": "accuracy", "instruction": "Which size?", **rows},
            "label_field": "size",
        },
    ]
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


def test_the_last_line_of_stdout_holds_the_scores_of_the_library(run: Run, saved_model: Path, task_file: Path) -> None:
    from promptembedder.evaluation import subsample

    result = run("evaluate", saved_model, "--tasks", task_file, "--limit", 8, "--seed", 3, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)  # nothing else is on stdout
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    expected = score_tasks(model, [subsample(task, 8, seed=3) for task in read_tasks(task_file)])
    assert [(score["task"], score["score"]) for score in said["scores"]] == [(one.task, one.score) for one in expected]
    assert said["mean"] == pytest.approx(sum(one.score for one in expected) / 3)
    assert {(score["rows"], score["limit"], score["seed"]) for score in said["scores"]} == {(8, 8, 3)}
    assert said["tokens"] == sum(one.tokens or 0 for one in expected)
    assert said["steering"] == []


def test_people_are_shown_a_table(run: Run, saved_model: Path, task_file: Path) -> None:
    result = run("evaluate", saved_model, "--tasks", task_file, "--only", "Pairs[1]", "--limit", 8)
    assert result.exit_code == 0
    for words in ("Pairs[1]", "sts", "cosine_spearman", "8 of 12", "mean"):
        assert words in result.stdout
    assert result.stderr == ""


def test_a_results_file_records_what_the_scores_hang_on(
    run: Run, saved_model: Path, task_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    words = ("evaluate", saved_model, "--tasks", task_file, "--only", "Colour", "-o", output, "--max-length", 5)
    result = run(*words, "--batch-size", 3, "--json")
    content = json.loads(output.read_text(encoding="utf-8"))
    manifest = (saved_model / "promptembedder.json").read_bytes()
    assert content["model_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert content["data_sha256"] == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (task_file, tmp_path / "rows.jsonl")
    }
    assert (content["max_length"], content["options"]["batch_size"], content["options"]["limit"]) == (5, 3, None)
    assert content["options"]["tasks"] == str(task_file)
    assert {"provenance", "versions", "machine", "seconds", "tokens", "command", "mean"} <= set(content)
    (score,) = content["scores"]
    assert (score["instruction"], score["metric"], score["rows"]) == ("Which colour?", "accuracy", 16)
    assert score["details"]["accuracy"] == pytest.approx(score["score"] / 100)
    del score["details"]
    assert json.loads(result.stdout) == content


def test_early_exit_fraction_changes_scores_and_is_recorded(run: Run, saved_model: Path, task_file: Path) -> None:
    words = ("evaluate", saved_model, "--tasks", task_file, "--only", "Pairs[1]", "--json")
    found = {depth: json.loads(run(*words, "--early-exit-fraction", depth).stdout) for depth in (0.34, 1.0)}
    assert {depth: content["options"]["early_exit_fraction"] for depth, content in found.items()} == {
        0.34: 0.34,
        1.0: 1.0,
    }
    assert found[0.34]["mean"] != found[1.0]["mean"]
    for model, depth, said in (
        (saved_model, 1.5, "at most 1, got 1.5"),
        ("frozen:mean:random:tiny-llama", 0.7, "is no PromptEmbedder: its texts leave no layer early. Leave 0.7 out"),
    ):
        result = run("evaluate", model, "--tasks", task_file, "--early-exit-fraction", depth)
        assert (result.exit_code, said in result.stderr.replace("\n", " ")) == (2, True)


def test_paraphrases_give_mean_spread_and_the_worth_of_the_right_instruction(
    run: Run, saved_model: Path, task_file: Path
) -> None:
    result = run("evaluate", saved_model, "--tasks", task_file, "--limit", 8, "--paraphrases", "--json")
    said = json.loads(result.stdout)
    assert all(len(score["wording_scores"]) == 3 for score in said["scores"])
    assert all(score["mean"] is not None and score["spread"] >= 0 for score in said["scores"])
    (steering,) = said["steering"]
    own = {score["task"]: score["score"] for score in said["scores"]}
    assert (steering["coarse"], steering["fine"]) == ("Colour", "Size")
    assert (steering["coarse_own"], steering["fine_own"]) == pytest.approx((own["Colour"], own["Size"]))
    assert "±" in result.stderr
    assert "gain from the right instruction" in result.stderr


def test_a_model_that_takes_no_instructions_gets_none(
    run: Run, saved_model: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptembedder import model as models

    def opened(name: str, **_: Any) -> models.LoadedEncoder:
        loaded = PromptEmbedder.from_pretrained(name, device="cpu")
        return models.LoadedEncoder(name=name, model=loaded, takes_instructions=False)

    monkeypatch.setattr(models, "load_encoder", opened)
    result = run("evaluate", saved_model, "--tasks", task_file, "--only", "Colour", "--paraphrases", "--json")
    (score,) = json.loads(result.stdout)["scores"]
    assert score["instruction"] is None
    assert score["wording_scores"] == {}
    assert "takes no instructions" in result.stderr


def test_bad_input_is_one_line_and_exit_code_2_before_a_model_is_loaded(
    refused: Refused, saved_model: Path, task_file: Path, tmp_path: Path, loaded: list[PromptEmbedder]
) -> None:
    words = ("evaluate", saved_model, "--tasks")
    assert "cannot be read" in refused(*words, tmp_path / "nowhere.json")
    assert "mteb has no task 'Banking77'" in refused(*words, "Banking77")
    assert "no task is named" in refused(*words, ",")
    assert "--limit and --only need a task file" in refused(*words, "STS12", "--limit", 10)
    assert "has no task 'Coulour'. Did you mean 'Colour'" in refused(*words, task_file, "--only", "Coulour")
    assert "in an existing folder" in refused(*words, task_file, "-o", tmp_path / "no" / "out.json")
    assert "in an existing folder" in refused(*words, task_file, "-o", tmp_path)
    task_file.write_text(json.dumps([{**json.loads(task_file.read_text())[0], "metric": "ndcg_at_10"}]))
    assert "not a metric of sts" in refused(*words, task_file)
    assert loaded == []


def test_limit_above_the_rows_of_a_task_scores_all_its_rows(run: Run, saved_model: Path, task_file: Path) -> None:
    """A limit above the size of one task of the file failed; now such a task is scored completely, with one notice."""
    result = run("evaluate", saved_model, "--tasks", task_file, "--only", "Pairs[1]", "--limit", 13, "--json")
    assert result.exit_code == 0
    (score,) = json.loads(result.stdout)["scores"]
    assert (score["rows"], score["rows_total"]) == (12, 12)
    assert result.stderr.count("fewer rows than --limit 13, all of them scored: Pairs[1] (12)") == 1


def test_missing_model_is_refused(refused: Refused, task_file: Path, tmp_path: Path) -> None:
    assert "nowhere" in refused("evaluate", tmp_path / "nowhere", "--tasks", task_file)


def test_without_mteb_the_install_line_is_shown(
    refused: Refused, saved_model: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptembedder import evaluation

    def missing(name: str, *, extra: str) -> None:
        raise ImportError(f'{name} is not installed. Run: pip install "promptembedder[{extra}]"')

    monkeypatch.setattr(evaluation, "require", missing)
    assert 'pip install "promptembedder[eval]"' in refused("evaluate", saved_model, "--tasks", task_file)


def test_a_file_of_options_does_what_the_options_do(
    run: Run, saved_model: Path, task_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "evaluate.yaml"
    content = {"model": str(saved_model), "tasks": str(task_file), "only": ["Colour"], "limit": 8, "seed": 1}
    config.write_text(json.dumps(content))
    said = json.loads(run("evaluate", "--config", config, "--seed", 2, "--json").stdout)
    assert [(score["task"], score["limit"], score["seed"]) for score in said["scores"]] == [("Colour", 8, 2)]


@pytest.mark.parametrize("words", [{"precision": "int8"}, {"precision": "binary"}, {"dimensions": 8}])
def test_vectors_are_scored_as_embed_stores_them(
    words: dict[str, Any], run: Run, saved_model: Path, task_file: Path
) -> None:
    """--dimensions did not normalize vectors again, and there was no --precision."""
    model, vector_format = PromptEmbedder.from_pretrained(saved_model, device="cpu"), VectorFormat(**words)

    class Reduced:
        def encode(self, inputs: list[str], *, prompt: str | None = None, **_: Any) -> np.ndarray:
            stored = vector_format.reduce(model.encode(inputs, prompt=prompt))
            if vector_format.precision == "binary":
                stored = np.unpackbits((stored.astype(int) + 128).astype(np.uint8), axis=1) * 2.0 - 1
            return np.asarray(stored / np.linalg.norm(stored, axis=1, keepdims=True), dtype=np.float32)

    options = [word for name, value in words.items() for word in (f"--{name}", value)]
    result = run("evaluate", saved_model, "--tasks", task_file, *options, "--json")
    record = json.loads(result.stdout)
    expected = [score.score for score in score_tasks(Reduced(), read_tasks(task_file))]
    assert [score["score"] for score in record["scores"]] == pytest.approx(expected, abs=0.5)
    assert words.items() <= record["options"].items()


def test_unknown_precision_is_refused_before_the_model_is_loaded(
    refused: Refused, saved_model: Path, task_file: Path, loaded: list[PromptEmbedder]
) -> None:
    words = ("evaluate", saved_model, "--tasks", task_file)
    assert "one of float32, int8, binary" in refused(*words, "--precision", "int4")
    assert loaded == []
    assert "between 1 and 40" in refused(*words, "--dimensions", 41)


def test_aspects_are_scored_as_by_the_library(run: Run, saved_model: Path, tmp_path: Path) -> None:
    from promptembedder.evaluation.aspects import aspect_scores, read_aspects

    rows = [{"text": f"{colour} {size}"} for colour in COLOURS for size in SIZES]
    write_rows(tmp_path / "rows.jsonl", rows)
    shared = {"corpus": "things", "file": "rows.jsonl", "kind": "unseen"}
    entries = [
        {**shared, "attribute": "colour", "instruction": "Which colour?", "triplets": [[0, 1, 4], [1, 2, 5]]},
        {**shared, "attribute": "size", "instruction": "Which size?", "triplets": [[0, 4, 1], [1, 5, 2]]},
    ]
    path = tmp_path / "aspects.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    result = run("evaluate", saved_model, "--aspects", path, "--json", "-o", tmp_path / "out.json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    expected = aspect_scores(model, read_aspects(path))
    assert [aspect["own"] for aspect in record["aspects"]] == [score.own for score in expected]
    assert json.loads((tmp_path / "out.json").read_text())["means"] == record["means"]


def test_tasks_and_aspects_exclude_each_other(refused: Refused, saved_model: Path) -> None:
    assert "one of --tasks, --aspects and --questions" in refused("evaluate", saved_model)


def test_answer_choice_is_scored_as_by_the_library(run: Run, saved_model: Path, tmp_path: Path) -> None:
    from promptembedder.evaluation.aspects import answer_choice_score, read_questions

    rows = [
        {"text": f"{colour} {size}", "questions": ["Which colour?", "Which size?"], "answers": [colour, size]}
        for colour in COLOURS
        for size in SIZES
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    result = run("evaluate", saved_model, "--questions", tmp_path / "rows.jsonl", "--json", "-o", tmp_path / "out.json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    expected = answer_choice_score(model, read_questions(tmp_path / "rows.jsonl"))
    assert [(one["accuracy"], one["blind"]) for one in record["questions"]] == [(expected.accuracy, 50.0)]
    assert json.loads((tmp_path / "out.json").read_text())["questions"] == record["questions"]


def test_scores_are_printed_if_the_results_file_cannot_be_written(
    run: Run, saved_model: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full after an hour of scoring ended in a traceback without any score."""

    def fail(path: Path, _: object) -> None:
        raise SaveError(f"cannot write {path} (No space left on device). Free space on the disk.")

    monkeypatch.setattr("promptembedder.cli.evaluate.write_json", fail)
    path = tmp_path / "scores.json"
    result = run("evaluate", saved_model, "--tasks", task_file, "--only", "Pairs[1]", "-o", path)
    assert result.exit_code == 2
    assert "cosine_spearman" in result.stdout
    assert result.stderr == f"error: cannot write {path} (No space left on device). Free space on the disk.\n"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder in which even root can write nothing")
def test_outputs_are_checked_before_the_work(
    refused: Refused, saved_model: Path, task_file: Path, corpus: Path, tmp_path: Path, loaded: list[object]
) -> None:
    """A read-only output ended in a traceback, some after the work."""
    model, pairs = saved_model, tmp_path / "pairs.csv"
    pairs.write_text("question,answer\na,b\nc,d\n")
    for words in (
        ("train", "--data", pairs, "-o", "/proc/x"),
        ("train", "--data", pairs, "-o", pairs / "model"),
        ("transfer", model, "--to", "random:tiny-gpt2", "--steps", 0, "-o", "/proc/x"),
        ("evaluate", model, "--tasks", task_file, "-o", "/proc/scores.json"),
        ("embed", model, corpus, "-o", "/proc/x"),
        ("embed", model, corpus, "-o", "/proc/x.parquet"),
        ("index", corpus, "--table", "/proc/x", "--model", model),
        ("export", model, "-o", "/proc/x"),
        ("compile", model, "--instruction", "Topic", "-o", "/proc/x"),
        ("plot", "similarity", model, corpus, "-o", "/proc/x"),
        ("plot", "training", model, "-o", "/proc/x"),
        ("plot", "moves", corpus, "-o", "/proc/x"),
        ("compare", model, "frozen:mean:random:tiny-llama", "--tasks", task_file, "-o", "/proc/scores.json"),
    ):
        assert refused(*words).count("cannot write") == 1
    assert loaded == []
