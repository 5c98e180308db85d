"""Scores agree with sentence-transformers' evaluators, and come out the same each time."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from promptembedder import PromptEmbedder
from promptembedder.errors import DataError
from promptembedder.evaluation import EvaluationTask, TaskScore, read_tasks, score_tasks, subsample
from promptembedder.evaluation.evaluators import preserve_rng
from promptembedder.evaluation.scoring import MtebAdapter
from promptembedder.evaluation.tasks import LabelledTexts, ScoredPairs, SearchData
from promptembedder.model import Encoder

pytestmark = pytest.mark.slow


@pytest.fixture
def tasks(task_file: Path) -> dict[str, EvaluationTask]:
    return {task.name: task for task in read_tasks(task_file)}


@pytest.fixture
def model(new_model: Callable[..., PromptEmbedder]) -> PromptEmbedder:
    return new_model()


def score_of(encoder: Encoder, task: EvaluationTask, **options: Any) -> TaskScore:
    (score,) = score_tasks(encoder, [task], **options)
    return score


def test_similarity_is_the_spearman_of_sentence_transformers(
    model: PromptEmbedder, tasks: dict[str, EvaluationTask]
) -> None:
    task = tasks["Alike"]
    assert isinstance(task.data, ScoredPairs)
    evaluator = EmbeddingSimilarityEvaluator(
        list(task.data.first), list(task.data.second), list(task.data.scores), write_csv=False
    )
    model.prompts, model.default_prompt_name = {"own": task.instruction}, "own"
    metrics = evaluator(model)
    score = score_of(model, task)
    assert score.score == pytest.approx(100 * metrics["spearman_cosine"], abs=1e-3)
    assert score.details["cosine_pearson"] == pytest.approx(metrics["pearson_cosine"], abs=1e-5)


def test_pair_classification_is_the_average_precision_of_sentence_transformers(
    model: PromptEmbedder, tasks: dict[str, EvaluationTask]
) -> None:
    task = tasks["Same"]
    assert isinstance(task.data, ScoredPairs)
    evaluator = BinaryClassificationEvaluator(
        list(task.data.first), list(task.data.second), [int(label) for label in task.data.scores], write_csv=False
    )
    model.prompts, model.default_prompt_name = {"own": task.instruction}, "own"
    assert score_of(model, task).score == pytest.approx(100 * evaluator(model)["cosine_ap"], abs=1e-3)


def test_retrieval_is_the_ndcg_of_sentence_transformers(
    model: PromptEmbedder, tasks: dict[str, EvaluationTask]
) -> None:
    task = tasks["Search"]
    assert isinstance(task.data, SearchData)
    # it knows relevant and not relevant, no grades
    same_grade = {query: dict.fromkeys(grades, 1) for query, grades in task.data.relevant.items()}
    task = EvaluationTask(
        **{**vars(task), "data": SearchData(task.data.queries, task.data.documents, same_grade)},
    )
    assert isinstance(task.data, SearchData)
    evaluator = InformationRetrievalEvaluator(
        task.data.queries,
        {name: text for name, (_, text) in task.data.documents.items()},
        {query: set(grades) for query, grades in same_grade.items()},
        name="all",
        query_prompt=task.instruction,
        corpus_prompt=model.encoder.config.default_instruction,
        write_csv=False,
    )
    metrics = evaluator(model)
    score = score_of(model, task)
    assert score.score == pytest.approx(100 * metrics["all_cosine_ndcg@10"], abs=1e-3)
    assert score.details["recall_at_10"] == pytest.approx(metrics["all_cosine_recall@10"], abs=1e-5)


def test_what_the_vectors_tell_is_found_and_what_they_do_not_is_not(
    encoder: Encoder, tasks: dict[str, EvaluationTask]
) -> None:
    assert score_of(encoder, tasks["First"]).score == 100
    assert score_of(encoder, tasks["Groups"]).score == pytest.approx(100)
    assert score_of(encoder, tasks["Second"]).score == 100
    (blind,) = score_tasks(encoder, [tasks["Second"]], wordings={"Second": [tasks["First"].instruction]})
    assert max(blind.wording_scores.values()) < 60


def test_two_runs_give_equal_scores(encoder: Encoder, tasks: dict[str, EvaluationTask]) -> None:
    def timeless(score: TaskScore) -> dict[str, Any]:
        return {key: value for key, value in vars(score).items() if "seconds" not in key}

    chosen = [subsample(task, 16, seed=2) for task in tasks.values()]
    first, second = (score_tasks(encoder, chosen, takes_instructions=False) for _ in range(2))
    assert [timeless(score) for score in first] == [timeless(score) for score in second]
    alone = score_of(encoder, chosen[4], takes_instructions=False)  # the order of tasks does not matter
    assert timeless(alone) == timeless(first[4])


def test_the_cache_does_not_change_the_scores(
    encoder: Any, tasks: dict[str, EvaluationTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = score_tasks(encoder, list(tasks.values()), takes_instructions=False)
    calls, encoder.calls = encoder.calls, []

    def uncached(self: MtebAdapter, inputs: Any, **_: Any) -> np.ndarray:
        return encoder.encode([text for batch in inputs for text in batch["text"]])

    monkeypatch.setattr(MtebAdapter, "encode", uncached)
    plain = score_tasks(encoder, list(tasks.values()), takes_instructions=False)
    assert [score.details for score in cached] == [score.details for score in plain]
    assert sum(len(texts) for _, texts in calls) < sum(len(texts) for _, texts in encoder.calls)


def test_no_text_is_encoded_twice_within_a_task(encoder: Any, tasks: dict[str, EvaluationTask]) -> None:
    for task in tasks.values():
        encoder.calls = []
        score = score_of(encoder, task, wordings={task.name: ["first, other words"]})
        read = [(prompt, text) for prompt, texts in encoder.calls for text in texts]
        assert len(read) == len(set(read)) == score.texts
        assert score.tokens is None  # this encoder has no tokenizer


def test_queries_are_read_under_the_instruction_and_documents_under_none(
    encoder: Any, tasks: dict[str, EvaluationTask]
) -> None:
    task = tasks["Search"]
    assert isinstance(task.data, SearchData)
    score_of(encoder, task)
    read = {prompt: set(texts) for prompt, texts in encoder.calls}
    assert read == {
        "find it": set(task.data.queries.values()),
        None: {text for _, text in task.data.documents.values()},
    }


@pytest.mark.parametrize("name", ["Alike", "Same", "First", "Groups"])
def test_elsewhere_all_texts_are_read_under_the_instruction(
    encoder: Any, tasks: dict[str, EvaluationTask], name: str
) -> None:
    score = score_of(encoder, tasks[name])
    assert {prompt for prompt, _ in encoder.calls} == {tasks[name].instruction} == {score.instruction}


def test_a_model_without_instructions_never_gets_one(encoder: Any, tasks: dict[str, EvaluationTask]) -> None:
    wordings = {name: ["other words"] for name in tasks}
    scores = score_tasks(encoder, list(tasks.values()), takes_instructions=False, wordings=wordings)
    assert {prompt for prompt, _ in encoder.calls} == {None}
    assert all(score.instruction is None and score.wording_scores == {} for score in scores)


def test_mean_and_spread_are_those_of_the_other_wordings(encoder: Any, tasks: dict[str, EvaluationTask]) -> None:
    task, wordings = tasks["Alike"], ["the first", "the second", "neither"]
    score = score_of(encoder, task, wordings={"Alike": wordings})
    alone = [score_of(encoder, EvaluationTask(**{**vars(task), "instruction": wording})).score for wording in wordings]
    assert list(score.wording_scores) == wordings
    assert list(score.wording_scores.values()) == pytest.approx(alone)
    assert score.mean == pytest.approx(np.mean(alone))
    assert score.spread == pytest.approx(np.std(alone))
    assert score.score == score_of(encoder, task).score


def test_many_wordings_in_one_pass_over_the_texts_score_as_one_by_one(
    model: PromptEmbedder, tasks: dict[str, EvaluationTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, wordings = [tasks["Alike"], tasks["Search"]], {"Alike": ["b", "c"], "Search": ["d"]}
    at_once = score_tasks(model, chosen, wordings=wordings)
    monkeypatch.setattr(PromptEmbedder, "encode_instructions", None)
    one_by_one = score_tasks(model, chosen, wordings=wordings)
    for one, other in zip(at_once, one_by_one, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.1)
        assert list(one.wording_scores.values()) == pytest.approx(list(other.wording_scores.values()), abs=0.1)
        assert one.texts < other.texts


def test_a_model_that_cannot_read_texts_alone_gets_one_instruction_at_a_time(
    new_model: Callable[..., PromptEmbedder], tasks: dict[str, EvaluationTask]
) -> None:
    model = new_model(placement="prefix")
    score = score_of(model, tasks["Alike"], wordings={"Alike": ["other words"]})
    assert score.texts == 2 * len({text for text in _texts(tasks["Alike"])})


def test_tokens_are_those_that_the_model_reads(model: PromptEmbedder, tasks: dict[str, EvaluationTask]) -> None:
    model.max_seq_length = 3
    texts = _texts(tasks["Alike"])
    assert all(len(model.tokenizer(text)["input_ids"]) > 3 for text in texts)
    score = score_of(model, tasks["Alike"])
    assert (score.texts, score.tokens) == (len(texts), 3 * len(texts))
    assert 0 < score.encode_seconds < score.seconds


def test_the_settings_of_the_same_official_task_are_used(encoder: Encoder, tasks: dict[str, EvaluationTask]) -> None:
    from promptembedder.evaluation.mteb_tasks import build_local_task

    official = EvaluationTask(**{**vars(tasks["First"]), "mteb_name": "AmazonCounterfactualClassification (en)"})
    assert build_local_task(official).samples_per_label == 32
    assert build_local_task(tasks["First"]).samples_per_label == 8
    unknown = EvaluationTask(**{**vars(tasks["Alike"]), "mteb_name": "STSBenchmrk"})
    with pytest.raises(DataError, match="mteb has no task 'STSBenchmrk'. Did you mean STSBenchmark"):
        score_tasks(encoder, [tasks["First"], unknown])
    assert encoder.calls == []  # type: ignore[attr-defined]


def test_a_common_mean_of_the_vectors_does_not_hide_the_classes(encoder: Any, tasks: dict[str, EvaluationTask]) -> None:
    """A frozen LLM with mean pooling scored below chance: its vectors share a mean that exceeds their differences."""

    class Shifted:
        def encode(self, inputs: list[str], **options: Any) -> np.ndarray:
            vectors = encoder.encode(inputs, **options) + 30
            return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)

    score = score_of(Shifted(), tasks["Second"])
    assert score.score == pytest.approx(score_of(encoder, tasks["Second"]).score, abs=3)
    assert score.score > 90


def test_scores_record_whether_the_classifier_gets_standardized_features(
    encoder: Encoder, tasks: dict[str, EvaluationTask]
) -> None:
    official = EvaluationTask(**{**vars(tasks["First"]), "mteb_name": "Banking77Classification"})
    assert score_of(encoder, tasks["First"]).standardized is True
    assert score_of(encoder, official).standardized is False  # as in mteb's published scores
    assert score_of(encoder, tasks["Alike"]).standardized is None


def test_an_undefined_score_is_refused(tasks: dict[str, EvaluationTask]) -> None:
    class Constant:
        def encode(self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **_: Any) -> np.ndarray:
            return np.ones((len(inputs), 3), dtype=np.float32)

    with pytest.raises(DataError, match="Alike: cosine_spearman is undefined. Check that the vectors differ"):
        score_of(Constant(), tasks["Alike"])


def test_the_callers_random_generators_and_progress_bars_stay_as_they_were(
    encoder: Encoder, tasks: dict[str, EvaluationTask], capfd: pytest.CaptureFixture[str]
) -> None:
    # of Python's own generator the next test tells: the suite's type checks draw from it
    numpy, cpu, bars = np.random.get_state(), torch.get_rng_state(), datasets.is_progress_bar_enabled()
    score_tasks(encoder, list(tasks.values()))
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), numpy, strict=True))
    assert torch.equal(torch.get_rng_state(), cpu)
    assert datasets.is_progress_bar_enabled() == bars
    assert capfd.readouterr() == ("", "")


def test_generators_are_given_back_even_after_an_error() -> None:
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(RuntimeError), preserve_rng():
        random.seed(7)
        torch.manual_seed(7)
        raise RuntimeError
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def _texts(task: EvaluationTask) -> set[str]:
    match task.data:
        case ScoredPairs(first=first, second=second):
            return {*first, *second}
        case LabelledTexts(texts=texts):
            return set(texts)
        case SearchData(queries=queries):
            return set(queries.values())
