"""mteb's own programs run our models: its checks, its evaluate, its command line, its result loader."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mteb
import numpy as np
import pytest
from mteb.cache import ResultCache
from mteb.mocks.mock_run import mock_run
from mteb.results import TaskResult
from mteb.types import PromptType

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, ModelFormatError
from promptembedder.evaluation import EvaluationTask, TaskInstructedEncoder, model_meta, read_tasks
from promptembedder.evaluation.evaluators import preserve_rng
from promptembedder.evaluation.mteb_tasks import build_local_task

pytestmark = pytest.mark.slow

FIND, STORE = "find the thing", "say what it is"


@pytest.fixture
def saved(new_model: Callable[..., PromptEmbedder], tmp_path: Path) -> Path:
    new_model("tiny-qwen3").save(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without warnings of what mteb does not know about a model, and of tiny data."""
    with preserve_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def tasks(task_file: Path) -> dict[str, mteb.AbsTask]:
    return {task.name: build_local_task(task) for task in read_tasks(task_file) if isinstance(task, EvaluationTask)}


class _HookState:
    """Notes what a model is asked for."""

    def __init__(self, model: PromptEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[str | None] = []
        encode = model.encode

        def noted(texts: list[str], *, prompt: str | None = None, **options: object) -> np.ndarray:
            self.prompts.append(prompt)
            return encode(texts, prompt=prompt, **options)

        monkeypatch.setattr(model, "encode", noted)


def test_a_finished_meta_runs_and_its_results_load(saved: Path, tasks: dict[str, mteb.AbsTask], tmp_path: Path) -> None:
    meta = model_meta(saved)
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("promptembedder/saved", 40, 512)
    cache = ResultCache(tmp_path / "results")
    chosen = [tasks["Alike"], tasks["Search"]]
    run = mteb.evaluate(meta, chosen, cache=cache, co2_tracker=False, show_progress_bar=False)
    scores = {result.task_name: result.get_score() for result in run.task_results}
    loaded = cache.load_results(models=[meta.name], tasks=chosen, include_remote=False, require_model_meta=True)
    assert [one.model_name for one in loaded.model_results] == [meta.name]
    assert {one.task_name: one.get_score() for one in loaded.model_results[0].task_results} == pytest.approx(
        scores, abs=1e-5
    )

    # the same score as by hand: cosines of vectors under the task's own instruction
    model = PromptEmbedder.from_pretrained(saved, device="cpu")
    rows = tasks["Alike"].dataset["test"]
    left, right = (model.encode(list(rows[side]), prompt="compare") for side in ("sentence1", "sentence2"))
    ranks = [np.argsort(np.argsort(values)) for values in ((left * right).sum(axis=1), rows["score"])]
    assert scores["Alike"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)


def test_other_weights_are_another_revision(saved: Path, new_model: Callable[..., PromptEmbedder]) -> None:
    """Results are kept by name and revision: those of an older checkpoint must not be taken for a newer one's."""
    before = model_meta(saved)
    other = new_model("tiny-qwen3", pooling="last")
    open_metas = [model_meta(model) for model in (new_model("tiny-qwen3"), new_model("tiny-qwen3"), other)]
    assert open_metas[0].revision == open_metas[1].revision
    model = PromptEmbedder.from_pretrained(saved, device="cpu")
    model.encoder.alignment.delta.data.add_(0.01)
    assert model_meta(model).revision != open_metas[0].revision
    model.save(str(saved))
    assert model_meta(saved).revision != before.revision


def test_each_task_is_read_under_its_own_instruction(
    new_model: Callable[..., PromptEmbedder], tasks: dict[str, mteb.AbsTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model("tiny-qwen3")
    asked = _HookState(model, monkeypatch)
    mteb.evaluate(
        model_meta(model), [tasks["Search"], tasks["Alike"]], cache=None, co2_tracker=False, show_progress_bar=False
    )
    assert set(asked.prompts) == {None, "find it", "compare"}


def test_a_models_own_prompts_go_before_general_ones(
    new_model: Callable[..., PromptEmbedder], tasks: dict[str, mteb.AbsTask]
) -> None:
    model = new_model("tiny-qwen3")
    model.prompts = {"query": FIND, "document": STORE, "Alike": "weigh them"}
    encoder = TaskInstructedEncoder(model)
    search, alike = tasks["Search"].metadata, tasks["Alike"].metadata
    assert encoder.instruction_for(search, PromptType.query) == "find it"
    assert encoder.instruction_for(search, PromptType.document) == STORE
    assert encoder.instruction_for(alike, None) == "weigh them"
    both = search.model_copy(update={"prompt": {"query": "ask", "document": "tell"}})
    assert TaskInstructedEncoder(new_model()).instruction_for(both, PromptType.document) == "tell"
    assert TaskInstructedEncoder(new_model()).instruction_for(both, PromptType.query) == "ask"
    none = search.model_copy(update={"prompt": None, "name": "Nowhere"})
    assert encoder.instruction_for(none, PromptType.query) == FIND


def test_mtebs_own_checks_pass(new_model: Callable[..., PromptEmbedder], monkeypatch: pytest.MonkeyPatch) -> None:
    """One task of each usual kind of its mock tasks; `mteb mock-run` runs all."""
    from mteb.mocks import mock_run as checks

    wrapped = model_meta(new_model("tiny-llama")).load_model()
    usual = ("Retrieval", "STS", "Classification", "PairClassification", "Reranking", "Clustering")
    found = {task.metadata.type: task for task in reversed(checks.get_compatible_mock_tasks(wrapped))}
    kinds = {kind: found[kind] for kind in usual}
    monkeypatch.setattr(checks, "get_compatible_mock_tasks", lambda _: list(kinds.values()))
    ran = {name: result for name, result in mock_run(wrapped).task_results.items() if result is not None}
    assert len(ran) == len(kinds)
    assert {name: result for name, result in ran.items() if not isinstance(result, TaskResult)} == {}


def test_what_is_no_saved_model_is_refused(tmp_path: Path, new_model: Callable[..., PromptEmbedder]) -> None:
    with pytest.raises(ModelFormatError, match="is not a saved model"):
        model_meta(tmp_path)
    with pytest.raises(ConfigError, match="mteb needs a name of the form owner/name, got 'mine'"):
        model_meta(new_model(), name="mine")


def test_mtebs_command_line_runs_a_saved_folder(
    saved: Path,
    tasks: dict[str, mteb.AbsTask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from typer.testing import CliRunner

    from promptembedder.cli.app import app

    monkeypatch.setattr(mteb, "get_tasks", lambda **_: [tasks["Alike"]])  # its own tasks come from the hub
    output = tmp_path / "results"
    words = ["mteb", "run", "-m", str(saved), "-t", "Alike", "--output-folder", str(output), "-v", "0"]
    result = CliRunner().invoke(app, [*words, "--no-co2-tracker"], catch_exceptions=False)
    assert result.exit_code == 0
    (written,) = output.rglob("Alike.json")
    assert written.parent.name == model_meta(saved).revision
    assert json.loads(written.read_text())["task_name"] == "Alike"

    result = CliRunner().invoke(app, ["mteb", "run", "-m", str(tmp_path), "-t", "Alike"])
    assert (result.exit_code, "is not a saved model" in result.stderr) == (2, True)
