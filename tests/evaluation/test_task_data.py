"""Laws of the seeded part of a task."""

from pathlib import Path

import pytest

from promptembedder.errors import DataError
from promptembedder.evaluation import EvaluationTask, read_tasks, subsample
from promptembedder.evaluation.tasks import LabelledTexts, ScoredPairs, SearchData


@pytest.fixture
def tasks(task_file: Path) -> dict[str, EvaluationTask]:
    return {task.name: task for task in read_tasks(task_file)}


def test_the_same_limit_and_seed_draw_the_same_rows_and_another_seed_others(tasks: dict[str, EvaluationTask]) -> None:
    for task in tasks.values():
        part = subsample(task, 10, seed=3)
        assert part == subsample(task, 10, seed=3)
        assert part.data != subsample(task, 10, seed=4).data
        assert (part.rows, part.rows_used, part.limit, part.seed) == (task.rows, 10, 10, 3)


def test_the_rows_of_a_smaller_limit_are_among_those_of_a_larger_one(tasks: dict[str, EvaluationTask]) -> None:
    few, many = (subsample(tasks["Alike"], limit, seed=1).data for limit in (5, 20))
    assert isinstance(few, ScoredPairs)
    assert isinstance(many, ScoredPairs)
    assert set(zip(few.first, few.second, few.scores, strict=True)) < set(
        zip(many.first, many.second, many.scores, strict=True)
    )


def test_pairs_and_labels_stay_together(tasks: dict[str, EvaluationTask]) -> None:
    whole, part = tasks["Second"].data, subsample(tasks["Second"], 12, seed=1).data
    assert isinstance(whole, LabelledTexts)
    assert isinstance(part, LabelledTexts)
    known = dict(zip(whole.texts + whole.train_texts, whole.labels + whole.train_labels, strict=True))
    for text, label in zip(part.texts + part.train_texts, part.labels + part.train_labels, strict=True):
        assert known[text] == label


def test_each_label_keeps_enough_to_learn_from(tasks: dict[str, EvaluationTask]) -> None:
    part = subsample(tasks["First"], 4, seed=0).data
    assert isinstance(part, LabelledTexts)
    assert {part.train_labels.count(label) for label in set(part.train_labels)} == {16}
    assert len(set(part.train_labels)) == 2


def test_retrieval_keeps_all_relevant_documents_and_ten_documents_a_query(tasks: dict[str, EvaluationTask]) -> None:
    task = tasks["Search"]
    for limit in (2, 7, 30):
        part = subsample(task, limit, seed=0)
        assert isinstance(task.data, SearchData)
        assert isinstance(part.data, SearchData)
        assert part.data.relevant == {query: task.data.relevant[query] for query in part.data.queries}
        assert {document for grades in part.data.relevant.values() for document in grades} <= set(part.data.documents)
        assert (len(part.data.queries), part.documents_used, part.documents) == (limit, 10 * limit, 400)


def test_a_limit_beyond_the_set_names_the_task_and_its_size(tasks: dict[str, EvaluationTask]) -> None:
    assert subsample(tasks["Alike"], 40).rows_used == 40
    with pytest.raises(DataError, match="limit 41 is more than Alike has: 40 rows"):
        subsample(tasks["Alike"], 41)
    with pytest.raises(DataError, match="2 or more, got 1"):
        subsample(tasks["Alike"], 1)


def test_a_draw_that_leaves_one_label_is_refused(tasks: dict[str, EvaluationTask]) -> None:
    refused = 0
    for seed in range(20):
        try:
            subsample(tasks["Same"], 2, seed=seed)
        except DataError as error:
            assert "Same: all 2 rows drawn have the same label" in str(error)
            refused += 1
    assert 0 < refused < 20
