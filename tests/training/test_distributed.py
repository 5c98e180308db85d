"""Two processes over gloo are one process with the joint batch: losses, gradients, data order, checkpoints, output.

The runs are those of `joint_runs.py`: once by two processes that torchrun starts, once by this one alone.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError
from promptembedder.storage import to_mapping
from promptembedder.training import (
    EvaluationConfig,
    InstructionCollator,
    InstructionVariants,
    RunConfig,
    load_training_data,
    new_model,
    train_model,
)
from promptembedder.training.distributed import Ranks

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("usual_backbones")]

Outcome = Mapping[str, Any]
SCRIPT = Path(__file__).with_name("joint_runs.py")
ONE_STEP = (
    *("pairs", "negatives", "labels", "symmetric", "stepwise", "stepwise_labels", "uneven"),
    *("prefix", "with_text", "noisy", "full", "lora", "static", "bfloat16", "mixture", "evaluated", "sharded"),
)

# combinations of what other cases cover one by one: their runs take half a minute
COMBINATIONS = ("pairs", "symmetric", "stepwise_labels", "prefix", "full", "bfloat16")
EACH_STEP = [pytest.param(case, marks=pytest.mark.minutes if case in COMBINATIONS else ()) for case in ONE_STEP]


def _loaded_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("joint_runs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["joint_runs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runs = _loaded_script()


def _launch(*words: object) -> subprocess.CompletedProcess[str]:
    """Two processes run these words of Python's command line."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *map(str, words)], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    runs.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def together(folder: Path, request: pytest.FixtureRequest) -> dict[str, list[Outcome]]:
    """What each of two processes reports, by case."""
    torch.set_num_threads(1)
    stopped = runs.run_case("stopped_alone", folder, together=False, stop_at=runs.STOPPED)
    assert "StopAtError" in stopped["error"]
    cases = [case for case in runs.CASES if case not in COMBINATIONS or request.config.getoption("--all")]
    _launch(SCRIPT, folder, *cases)
    return {case: [torch.load(folder / f"{case}.{rank}.pt") for rank in range(2)] for case in cases}


@pytest.fixture(scope="module")
def alone(folder: Path, together: dict[str, list[Outcome]]) -> dict[str, Outcome]:
    """The same by one process; `stopped_together` goes on from what two have left."""
    cases = [case for case in (*ONE_STEP, "stopped_together") if case in together]
    return {case: runs.run_case(case, folder, together=False) for case in cases}


def _assert_close(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, expected in left.items():
        assert (expected - right[name]).norm() <= tolerance * expected.norm() + 1e-9, name


@pytest.mark.parametrize("case", EACH_STEP)
def test_two_processes_have_the_loss_and_gradients_of_the_joint_batch(
    case: str, alone: dict[str, Outcome], together: dict[str, list[Outcome]]
) -> None:
    for outcome in together[case]:
        assert outcome["losses"] == pytest.approx(alone[case]["losses"], abs=1e-5)
        assert outcome["train_loss"] == pytest.approx(alone[case]["train_loss"], abs=1e-5)
        _assert_close(alone[case]["gradients"], outcome["gradients"], 1e-5)


def test_two_epochs_of_a_mixture_end_at_the_same_weights(
    alone: dict[str, Outcome], together: dict[str, list[Outcome]]
) -> None:
    """Small last batches, one of a single row, and the second epoch's own order."""
    assert len(alone["mixture"]["losses"]) == 14
    _assert_close(alone["mixture"]["weights"], together["mixture"][0]["weights"], 1e-4)
    _assert_close(alone["noisy"]["weights"], together["noisy"][1]["weights"], 1e-4)


def test_all_processes_hold_the_same_weights(together: dict[str, list[Outcome]]) -> None:
    for case in set(ONE_STEP) & together.keys():
        first, second = (outcome["weights"] for outcome in together[case])
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_goes_on_with_another_number_of_processes(
    alone: dict[str, Outcome], together: dict[str, list[Outcome]]
) -> None:
    assert "StopAtError" in together["stopped_together"][0]["error"]
    for resumed in (alone["stopped_together"], together["stopped_alone"][0]):
        assert resumed["resumed_from"] == 5
        assert resumed["losses"] == pytest.approx(alone["mixture"]["losses"][5:], abs=1e-4)
        _assert_close(alone["mixture"]["weights"], resumed["weights"], 1e-4)


def test_a_step_exchanges_the_trained_gradients_and_the_embeddings_and_nothing_else(
    together: dict[str, list[Outcome]],
) -> None:
    outcome = together["negatives"][0]
    dim = PromptEmbedder.create(config=runs.MODEL, device="cpu").encoder.reader.dim
    assert outcome["communicated"] == [outcome["trained_bytes"] + 6 * 3 * dim * 4]  # 6 rows of 3 columns, float32


def test_nothing_frozen_is_sent(together: dict[str, list[Outcome]]) -> None:
    for case in ("negatives", "static", "lora", "sharded"):
        assert together[case][0]["sent"] == set(together[case][0]["weights"])


def test_the_prompter_reads_once_a_step_on_every_process(together: dict[str, list[Outcome]]) -> None:
    for outcome in together["noisy"]:
        assert outcome["prompter_passes"] == len(outcome["losses"]) == 3


def test_a_process_out_of_step_is_named(together: dict[str, list[Outcome]]) -> None:
    for outcome in together["disturbed"]:
        assert outcome["error"].startswith("RanksDifferError: step 3: the trained weights of process 1 differ")
        assert "\n" not in outcome["error"]


def test_evaluation_is_that_of_one_process(alone: dict[str, Outcome], together: dict[str, list[Outcome]]) -> None:
    expected = alone["evaluated"]["metrics"]
    assert sum("loss" in name for name in expected) == 3
    assert any("spearman" in name for name in expected)
    for outcome in together["evaluated"]:
        assert outcome["metrics"] == pytest.approx(expected, abs=1e-4)


def test_a_sharded_reader_is_half_on_each_process_and_saved_like_any(
    folder: Path, alone: dict[str, Outcome], together: dict[str, list[Outcome]]
) -> None:
    halves = [outcome["layer_numbers"] for outcome in together["sharded"]]
    assert sum(halves) == alone["sharded"]["layer_numbers"]
    assert max(halves) < 0.6 * sum(halves)
    saved, expected = (
        PromptEmbedder.from_pretrained(folder / name, device="cpu").encode(["a red house"], prompt="Find it")
        for name in ("sharded_output", "sharded_output_alone")
    )
    assert saved == pytest.approx(expected, abs=1e-5)


def test_the_command_trains_with_torchrun_and_speaks_once(folder: Path, alone: dict[str, Outcome]) -> None:
    recipe = to_mapping(runs.recipe_of("mixture", folder, together=False))
    recipe["run"]["output"] = str(folder / "command_output")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))), encoding="utf-8")
    done = _launch("-m", "promptembedder", "train", folder / "recipe.yaml", "--json")
    result = json.loads(done.stdout)  # one object and nothing else
    assert result["train_loss"] == pytest.approx(alone["mixture"]["train_loss"], abs=1e-4)
    assert done.stderr.count("pairs in ") == 1
    output = Path(result["model"])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 15))
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-14"}
    saved = PromptEmbedder.from_pretrained(output, device="cpu")
    trained = {f"0.{name}": weight.detach() for name, weight in saved.encoder.named_parameters()}
    _assert_close(alone["mixture"]["weights"], {n: trained[n] for n in alone["mixture"]["weights"]}, 1e-3)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 24])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_cover_a_batch_in_order_and_differ_by_one_row_at_most(rows: int, count: int) -> None:
    shares = Ranks(0, count).shares(rows)
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("rows", [1, 5])
def test_processes_collate_one_batch_under_one_wording(rows: int) -> None:
    model = PromptEmbedder.create(config=runs.MODEL, device="cpu")
    wordings = {"ask": InstructionVariants(tuple(f"wording {i}" for i in range(20)), ())}
    features = [{"anchor": f"a{i}", "positive": f"b{i}", "dataset_name": "ask"} for i in range(rows)]

    def batch(ranks: Ranks) -> dict[str, Any]:
        return InstructionCollator(preprocess_fn=model.preprocess, variants=wordings, ranks=ranks)(features)

    whole, parts = batch(Ranks()), [batch(Ranks(own, 2)) for own in range(2)]
    assert {part["anchor_instruction"] for part in parts} == {whole["anchor_instruction"]}
    assert [part["all_gather_with_grad"] for part in parts] == [rows, rows]
    assert [len(part["anchor_input_ids"]) for part in parts] == [max(rows // 2, 1), rows - rows // 2]


def test_one_process_cannot_share_a_reader(folder: Path) -> None:
    recipe = runs.recipe_of("sharded", folder, together=True)
    with pytest.raises(ConfigError, match="run.shard_reader needs several processes"):
        new_model(recipe, load_training_data(recipe.data, seed=0), device="cpu")


@pytest.mark.parametrize(
    ("case", "message"),
    [("lora", "needs a frozen reader"), ("static", "cannot be combined with evaluation.sts")],
)
def test_a_reader_that_cannot_be_shared_is_refused(case: str, message: str, folder: Path) -> None:
    recipe = runs.recipe_of(case, folder, together=False)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(
            recipe, run=RunConfig(shard_reader=True), evaluation=EvaluationConfig(sts=str(folder / "scored.jsonl"))
        )


def test_more_processes_than_rows_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = runs.recipe_of("pairs", folder, together=False)
    monkeypatch.setattr("promptembedder.training.run.init_distributed", lambda: Ranks(0, 7))
    data = load_training_data(recipe.data, seed=0)
    with pytest.raises(ConfigError, match="optim.batch_size is 6, for 7 processes together. Raise it to at least 7"):
        train_model(PromptEmbedder.create(config=recipe.model, device="cpu"), data, recipe)
