"""Mixture files and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptembedder.data import Task, read_mixture
from promptembedder.errors import DataError

ENTRY = {
    "name": "squad",
    "file": "train/squad.jsonl.gz",
    "rows": 2,
    "with_negative": 0,
    "instruction": "Given a question, retrieve the answer",
    "document_instruction": None,
    "kind": "asymmetric",
    "in_batch_negatives": True,
    "dropped_as_contaminated": 1,
    "instruction_paraphrases": ["Answer the question", "Find the answer"],
}


def mixture(folder: Path, *entries: Any) -> Path:
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "squad.jsonl.gz").touch()
    path = folder / "mixture.json"
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    return path


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ENTRY.items() if name != key}


def test_a_task_has_its_file_beside_the_mixture_and_all_its_wordings(tmp_path: Path) -> None:
    assert read_mixture(mixture(tmp_path, ENTRY)) == [
        Task(
            name="squad",
            file=tmp_path / "train" / "squad.jsonl.gz",
            instructions=("Given a question, retrieve the answer", "Answer the question", "Find the answer"),
            document_instructions=(),
            in_batch_negatives=True,
        )
    ]


def test_symmetric_tasks_have_the_same_wordings_on_both_sides(tmp_path: Path) -> None:
    (task,) = read_mixture(mixture(tmp_path, ENTRY | {"document_instruction": ENTRY["instruction"]}))
    assert task.document_instructions == task.instructions
    assert len(task.instructions) == 3


def test_an_instruction_of_its_own_is_the_only_wording_of_documents(tmp_path: Path) -> None:
    (task,) = read_mixture(mixture(tmp_path, ENTRY | {"document_instruction": "Represent the passage"}))
    assert task.document_instructions == ("Represent the passage",)


def test_paraphrases_may_be_left_out(tmp_path: Path) -> None:
    (task,) = read_mixture(mixture(tmp_path, without("instruction_paraphrases")))
    assert task.instructions == (ENTRY["instruction"],)


def test_a_file_may_be_named_absolutely(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.touch()
    (task,) = read_mixture(mixture(tmp_path, ENTRY | {"file": str(elsewhere)}))
    assert task.file == elsewhere


def test_tasks_keep_the_order_of_the_file(tmp_path: Path) -> None:
    tasks = read_mixture(mixture(tmp_path, *(ENTRY | {"name": name} for name in "cab")))
    assert [task.name for task in tasks] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (without("in_batch_negatives"), r"mixture\.json, task 1 lacks in_batch_negatives\. Every task has name, file"),
        (without("document_instruction"), "lacks document_instruction.*is null if documents have none"),
        ({}, "lacks name, file, instruction, document_instruction, in_batch_negatives"),
        (without("document_instruction") | {"documents_instruction": "x"}, "Did you mean 'document_instruction'[?]"),
        (without("instruction") | {"instructions": ["x"]}, "unknown key 'instructions'. Did you mean 'instruction'[?]"),
        (ENTRY | {"prompt": "x"}, "unknown key 'prompt'.*Known keys are name, file"),
        (ENTRY | {"name": " "}, r"name is ' ' \(str\)\. Write a string"),
        (ENTRY | {"name": "a+b"}, r"the name 'a\+b' contains a '\+'"),
        (ENTRY | {"file": "train/none.jsonl"}, r"\(squad\): .*none\.jsonl is not a file.*relative to"),
        (ENTRY | {"file": "train"}, "train is not a file"),
        (ENTRY | {"instruction": None}, r"instruction is None \(NoneType\)"),
        (ENTRY | {"document_instruction": ""}, r"document_instruction is '' \(str\)"),
        (ENTRY | {"instruction_paraphrases": "one"}, "instruction_paraphrases is 'one'. Write a list"),
        (ENTRY | {"instruction_paraphrases": ["one", 2]}, r"instruction_paraphrases is 2 \(int\)"),
        (ENTRY | {"in_batch_negatives": "yes"}, "in_batch_negatives is 'yes'. Write true or false"),
        ("squad", "task 1 must be an object, got 'squad'"),
    ],
)
def test_a_task_that_cannot_be_used_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_mixture(mixture(tmp_path, entry))


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task 2: the name 'squad' is taken"):
        read_mixture(mixture(tmp_path, ENTRY, ENTRY))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{", r"is not JSON"),
        (b"\xff", r"is not JSON"),
        (b"[" * 100_000, r"is not JSON"),
        (b"{}", "must be a list of tasks, got {}"),
        (b"[]", "must be a list of tasks"),
    ],
)
def test_a_file_that_is_no_mixture_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mixture.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_mixture(path)


def test_a_missing_mixture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_mixture(tmp_path / "none.json")
