"""Validation of task files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptembedder.errors import DataError
from promptembedder.evaluation import read_tasks
from promptembedder.evaluation.tasks import LabelledTexts, ScoredPairs, SearchData

ChangeTask = Callable[..., Path]


def test_every_type_is_read(task_file: Path) -> None:
    tasks = {task.name: task for task in read_tasks(task_file)}
    assert {name: (task.rows, task.documents) for name, task in tasks.items()} == {
        **{"Alike": (40, 0), "Same": (40, 0), "First": (40, 0), "Second": (40, 0), "Groups": (40, 0)},
        "Search": (30, 400),  # the query that nothing answers is left out
    }
    same, first, search = (tasks[name].data for name in ("Same", "First", "Search"))
    assert isinstance(same, ScoredPairs)
    assert isinstance(first, LabelledTexts)
    assert isinstance(search, SearchData)
    assert set(same.scores) == {0.0, 1.0}
    assert len(first.train_texts) == 64
    assert search.relevant["q1"] == {"d13": 1, "d14": 2}
    assert tasks["Search"].paraphrases == ("look for it", "seek it", "search it")
    assert tasks["Search"].files == tuple(
        task_file.parent / name for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
    )
    assert tasks["Alike"].limit is None


def test_only_the_named_tasks_are_read_in_the_order_of_the_file(task_file: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl.gz").write_bytes(b"broken, but of other tasks")
    assert [task.name for task in read_tasks(task_file, only=["Search", "First"])] == ["First", "Search"]


def test_a_subset_and_a_label_field_choose_rows_and_labels(change_task: ChangeTask, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    marked = [{**row, "subset": "en" if number % 4 < 2 else "de"} for number, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    (task,) = read_tasks(change_task("Second", subset="en"), only=["Second"])
    assert isinstance(task.data, LabelledTexts)
    assert task.rows == 20
    assert set(task.data.labels) == {0, 2}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "Alike",
            {"metric": "accuracy"},
            r"task 1 \(Alike\): 'accuracy' is not a metric of sts. Try 'cosine_spearman'",
        ),
        ("Search", {"metric": "ndcg@10"}, r"'ndcg@10' is not a metric of retrieval. Did you mean 'ndcg_at_10'"),
        ("Alike", {"type": "stss"}, "unknown type 'stss'. Did you mean 'sts'"),
        ("Alike", {"type": ["sts"]}, "unknown type"),
        ("Alike", {"instructon": "x"}, "unknown key 'instructon'. Did you mean 'instruction'"),
        ("Alike", {"instruction": None}, "task 1 lacks instruction"),
        ("Alike", {"instruction": " "}, "instruction must be a text, got ' '"),
        ("Alike", {"name": 3}, "name must be a text, got 3"),
        ("Alike", {"name": "Same"}, "the name 'Same' occurs twice"),
        ("Alike", {"files": {"pairs": "gone.jsonl"}}, "gone.jsonl is not a file. Check pairs"),
        ("Alike", {"files": {"rows": "rows.jsonl"}}, "files must contain pairs"),
        ("First", {"files": {"rows": "rows.jsonl", "split": "test"}}, "put split beside 'files', not inside it"),
        ("Alike", {"files": "pairs.jsonl.gz"}, "files must contain pairs"),
        ("Alike", {"files": {"pairs": "rows.jsonl"}}, "rows.jsonl, row 1 has no 'sentence1': found text, label"),
        ("Alike", {"split": "tset"}, "has no row of split 'tset'; it has dev, test"),
        ("Alike", {"dev_split": "val"}, "has no row of split 'val'"),
        ("Alike", {"split": "dev"}, "every 'score' is"),
        ("Alike", {"subset": "en"}, "has no row of subset 'en'"),
        ("Alike", {"label_field": "split"}, "'split' contains 'test', not a number"),
        ("Same", {"label_field": "score"}, "must be 1 or 0, and both must occur"),
        ("First", {"train_split": None}, "lacks train_split"),
        ("First", {"train_split": "learn"}, "has no row of split 'learn'"),
        ("First", {"label_field": "split"}, "every 'split' is 'test'"),
        ("First", {"label_field": "kind"}, "row 1 has no 'kind'"),
        ("Search", {"instruction_paraphrases": "x"}, "instruction_paraphrases must be a list of texts, got 'x'"),
    ],
)
def test_a_wrong_task_is_refused_in_one_line(
    change_task: ChangeTask, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read_tasks(change_task(name, **changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ("{}", "must be a list of tasks, got {}"),
        ("[]", "must be a list of tasks"),
        ("[3]", "task 1 must be an object, got 3"),
    ],
)
def test_what_is_no_task_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_tasks(path)


def test_a_missing_file_and_an_unknown_name_are_refused(task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_tasks(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="has no task 'Serch'. Did you mean 'Search'"):
        read_tasks(task_file, only=["Serch"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td999\t1", "names 'd999', which .*corpus.jsonl does not contain"),
        ("q99\td1\t1", "names 'q99', which .*queries.jsonl does not contain"),
        ("q1\td1\tyes", "'relevance' contains 'yes', not a number"),
        ("q1\td1\tnan", "'relevance' contains 'nan', not a number"),
        ("q1\td1\t0", "has no relevant document"),
    ],
)
def test_wrong_judgements_are_refused(task_file: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "qrels.tsv").write_text(f"query_id\tdoc_id\trelevance\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_tasks(task_file, only=["Search"])


def test_an_id_that_is_taken_twice_is_refused(task_file: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + json.dumps({"id": "d7", "text": "again"}) + "\n")
    with pytest.raises(DataError, match="corpus.jsonl: the id 'd7' occurs twice"):
        read_tasks(task_file, only=["Search"])


def test_a_text_that_is_none_is_refused(task_file: Path, tmp_path: Path) -> None:
    row = {"sentence1": 5, "sentence2": "b", "score": 1}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "score": 2}) + "\n")
    tasks = json.loads(task_file.read_text())
    tasks[0] = {**tasks[0], "files": {"pairs": "pairs.jsonl"}, "split": None}
    task_file.write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="'sentence1' contains 5, not a text"):
        read_tasks(task_file, only=["Alike"])


def test_the_folder_that_files_are_relative_to_is_named_in_full(
    change_task: ChangeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task file named as `../tasks.json` gave "relative to ..", which names no folder to look into."""
    path = change_task("Alike", files={"pairs": "gone.jsonl"})
    (path.parent / "below").mkdir()
    monkeypatch.chdir(path.parent / "below")
    with pytest.raises(DataError, match=f"relative to {path.parent.resolve()}"):
        read_tasks(Path("..") / path.name)
