"""From a recipe's data section to data sets of one shape each."""

import json
from pathlib import Path

import pytest

from promptembedder.errors import ConfigError, DataError
from promptembedder.training import DataConfig, load_training_data

pytestmark = pytest.mark.slow


def test_rows_with_and_without_negative_become_two_data_sets(mixture: Path) -> None:
    tasks = load_training_data(DataConfig(mixture=str(mixture)), seed=0).tasks
    assert {name: task.train.column_names for name, task in tasks.items()} == {
        "pairs": ["anchor", "positive"],
        "pairs+negatives": ["anchor", "positive", "negative"],
        "labels+negatives": ["anchor", "positive", "negative"],
    }
    assert tasks["pairs"].in_batch_negatives
    assert not tasks["labels+negatives"].in_batch_negatives
    assert tasks["pairs"].instructions == ("Find the same thing", "Find it", "Which one is meant?")
    assert tasks["labels+negatives"].document_instructions == tasks["labels+negatives"].instructions


def test_held_out_rows_are_not_trained_on(mixture: Path) -> None:
    data = load_training_data(DataConfig(mixture=str(mixture), tasks=("pairs",), held_out=10), seed=0)
    assert data.held_out is not None
    trained = {row["anchor"] for task in data.train.values() for row in task}
    held = {row["anchor"] for task in data.held_out.values() for row in task}
    assert len(held) == 10
    assert not trained & held


def test_rows_without_a_negative_can_be_left_out(mixture: Path) -> None:
    config = DataConfig(mixture=str(mixture), tasks=("pairs",), require_negative=True, limit=20)
    (task,) = load_training_data(config, seed=0).tasks.values()
    assert len(task.train) == 20
    assert set(task.train["negative"]) == {"nothing"}


def test_the_limit_is_a_seeded_subsample(mixture: Path) -> None:
    def anchors(seed: int) -> list[str]:
        data = load_training_data(DataConfig(mixture=str(mixture), tasks=("pairs",), limit=20), seed=seed)
        return sorted(row["anchor"] for task in data.train.values() for row in task)

    assert len(anchors(0)) == 20
    assert anchors(0) == anchors(0) != anchors(1)


def test_a_data_set_in_the_hubs_shape_loads_from_a_folder(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(hub=str(tmp_path), columns=("question", "answer"), instructions=("Answer it",))
    (task,) = load_training_data(config, seed=0).tasks.values()
    assert sorted(task.train["anchor"]) == [row["question"] for row in rows]
    assert task.instructions == ("Answer it",)


def test_a_missing_hub_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(DataError, match="no column 'anchor'. It has: question, answer"):
        load_training_data(DataConfig(hub=str(tmp_path)), seed=0)


def test_label_data_without_negatives_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"anchor": "a", "positive": "b"}\n')
    with pytest.raises(DataError, match="rows without `negative` and no in-batch negatives"):
        load_training_data(DataConfig(pairs=str(path), in_batch_negatives=False), seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(), "names no source"),
        (DataConfig(mixture="MIXTURE", tasks=("nope",)), "no task 'nope'. It has: pairs"),
    ],
)
def test_unknown_data_is_refused(config: DataConfig, message: str, mixture: Path) -> None:
    given = DataConfig(mixture=str(mixture), tasks=config.tasks) if config.mixture else config
    with pytest.raises(ConfigError, match=message):
        load_training_data(given, seed=0)
