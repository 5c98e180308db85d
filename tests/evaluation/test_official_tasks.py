"""mteb's own tasks by name, as far as this can be told without the hub."""

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from promptembedder.errors import DataError
from promptembedder.evaluation import hub_tasks, score_tasks
from promptembedder.evaluation import mteb_tasks as module
from promptembedder.evaluation.mteb_tasks import official_task

pytestmark = pytest.mark.slow


def test_a_name_brings_type_metric_and_instruction() -> None:
    classification, retrieval, similarity = hub_tasks(["Banking77Classification", "SciFact", "STS12"])
    assert (classification.type, classification.metric) == ("Classification", "accuracy")
    assert classification.instruction == "Given a online banking query, find the corresponding intents"
    assert (retrieval.type, retrieval.metric) == ("Retrieval", "ndcg_at_10")
    assert retrieval.instruction == "Given a scientific claim, retrieve documents that support or refute the claim"
    assert similarity.instruction == "Retrieve semantically similar text."


def test_one_subset_can_be_asked_for() -> None:
    assert len(official_task("AmazonCounterfactualClassification").hf_subsets) == 4
    assert official_task("AmazonCounterfactualClassification (en)").hf_subsets == ["en"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Banking77Clasification", "mteb has no task 'Banking77Clasification'. Did you mean Banking77Classification"),
        ("qqqqqqqqqq", "mteb has no task 'qqqqqqqqqq'. Give the name of an mteb task"),
        ("AmazonCounterfactualClassification (xx)", "has no subset 'xx'. It has: en-ext, en, de, ja"),
        ("CIFAR10ZeroShot", "has the modalities text, image; only text is supported"),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(DataError) as refused:
        hub_tasks([name])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_name_is_refused() -> None:
    with pytest.raises(DataError, match="no task is named"):
        hub_tasks([])


def test_a_hub_out_of_reach_is_told_at_once_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: object, path: str, **_: Any) -> None:
        raise RuntimeError("[Errno -2] Name or service not known\nwith more\nlines")

    monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        DataError, match=r"mteb/scifact, the data of SciFact: \[Errno -2\] .* not known. Check"
    ) as refused:
        hub_tasks(["SciFact"])
    assert "\n" not in str(refused.value)


def test_data_that_is_neither_here_nor_to_be_had_is_told_in_one_line(encoder: Any) -> None:
    with pytest.raises(DataError, match="cannot load the data of SciFact: Couldn't reach 'mteb/scifact'"):
        score_tasks(encoder, hub_tasks(["SciFact"]))


def test_data_from_the_hub_is_scored_under_the_tasks_instruction(
    encoder: Any, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(self: Any, **_: Any) -> None:
        rows = [
            {"sentence1": f"ba {word}", "sentence2": f"be {word}", "score": score} for score, word in enumerate("abc")
        ]
        self.dataset = datasets.DatasetDict(test=datasets.Dataset.from_list(rows))
        self.data_loaded = True

    monkeypatch.setattr(type(official_task("STS12")), "load_data", loaded)
    (task,) = hub_tasks(["STS12"])
    (score,) = score_tasks(encoder, [task], wordings={"STS12": ["other words"]})
    assert (score.task, score.metric, score.rows, score.documents, score.limit) == (
        "STS12",
        "cosine_spearman",
        3,
        0,
        None,
    )
    assert {prompt for prompt, _ in encoder.calls} == {task.instruction, "other words"}
    assert list(score.wording_scores) == ["other words"]


def test_the_size_of_a_retrieval_task_is_that_of_queries_and_documents(task_file: Path) -> None:
    from promptembedder.evaluation import read_tasks
    from promptembedder.evaluation.mteb_tasks import build_local_task

    (task,) = read_tasks(task_file, only=["Search"])
    assert module.task_sizes(build_local_task(task)) == (30, 400)
