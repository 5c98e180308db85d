"""Laws of the quality benchmark: equal data for all, nothing trained twice, nothing of other settings mixed in."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from benchmarks.quality import run as quality_run_module
from benchmarks.quality.benchmark import QualityConfig, base_recipe, bench_quality
from benchmarks.quality.methods import METHODS as QUALITY_METHODS
from benchmarks.quality.report import quality_content, quality_markdown, quality_with_held, write_quality
from benchmarks.quality.run import QualityRun, config_key, recipe_of
from promptembedder.errors import ConfigError
from promptembedder.storage import to_mapping

pytestmark = pytest.mark.slow


@pytest.fixture
def config(benchmark_files: Path, tmp_path: Path) -> QualityConfig:
    """Two tasks to train on, one to score on, a tiny model, three steps."""
    return QualityConfig(
        mixture=str(benchmark_files / "mixture.json"),
        tasks=str(benchmark_files / "tasks.json"),
        prompter="random:tiny-llama",
        readers=("random:tiny-llama",),
        methods=("promptembedder", "static", "lora-1e-3", "frozen-mean"),
        steps=3,
        batch_size=4,
        max_seq_length=32,
        held_out=4,
        curve_points=2,
        dtype="float32",
        work=str(tmp_path / "runs"),
    )


def _without_times(runs: list[QualityRun]) -> list[dict[str, Any]]:
    found = []
    for run in runs:
        row = dataclasses.asdict(run) | {"seconds": 0}
        row["curve"] = [point | {"seconds": 0} for point in row["curve"]]
        found.append(row)
    return found


@pytest.mark.minutes
def test_every_method_is_trained_scored_and_read_again(config: QualityConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = bench_quality(config)
    assert [run.method for run in runs] == list(config.methods)
    assert [run.steps for run in runs] == [3, 3, 3, 0]
    assert [run.trained_parameters > 0 for run in runs] == [True, True, True, False]
    for run in runs:
        assert run.mean == pytest.approx(run.scores["Alike"])
        assert set(run.held_out) == {"seen", "unseen", "empty", "others"}
    for run in runs[:3]:
        assert [point["step"] for point in run.curve] == [1, 3]
        assert 0 < run.curve[0]["seconds"] < run.curve[1]["seconds"] == run.seconds
    assert set(runs[1].fallbacks) == {"static-default"}
    monkeypatch.setattr(quality_run_module, "train_model", lambda *_, **__: pytest.fail("trained again"))
    assert bench_quality(config) == runs


class _Stop(TrainerCallback):
    """Pulls the plug in the middle of the second step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            raise KeyboardInterrupt


@pytest.mark.minutes
def test_a_run_cut_off_goes_on_to_the_same_scores(config: QualityConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, methods=("promptembedder",))
    whole = bench_quality(dataclasses.replace(config, work=str(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        bench_quality(config, callbacks=[_Stop()])
    steps: list[int] = []

    class _Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.append(state.global_step)

    assert _without_times(bench_quality(config, callbacks=[_Count()])) == _without_times(whole)
    assert steps == [2, 3]


def test_equal_time_is_as_many_steps_as_fit_into_the_first_loras(
    config: QualityConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        config, methods=("promptembedder", "lora-1e-3", "lora-3e-3"), timed=("promptembedder",)
    )

    def run_method(name: str, method: Any, recipe: Any, data: Any, *, budget: str, callbacks: Any) -> QualityRun:
        seconds = {"promptembedder": 2.0, "lora-1e-3": 16.0, "lora-3e-3": 99.0}[name]
        return QualityRun(
            method=name,
            reader="r",
            budget=budget,
            steps=recipe.optim.steps,
            seconds=seconds,
            seed=0,
            scores={"Alike": 1.0},
            mean=1.0,
        )

    monkeypatch.setattr("benchmarks.quality.benchmark.run_method", run_method)
    timed = [run for run in bench_quality(config) if run.budget == "seconds"]
    assert [(run.method, run.steps) for run in timed] == [("promptembedder", 20)]  # 3 steps in 2 s, so 24 in 16; tens


def test_a_run_of_other_settings_is_refused(config: QualityConfig) -> None:
    config = dataclasses.replace(config, methods=("frozen-mean",))
    bench_quality(config)
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        bench_quality(dataclasses.replace(config, batch_size=6))


def test_methods_differ_from_each_other_in_what_they_name_only(config: QualityConfig) -> None:
    base = base_recipe(config, "any", "random:tiny-llama", 0, 3, "steps")
    plain = to_mapping(recipe_of(base, QUALITY_METHODS["promptembedder"]))
    for name, method in QUALITY_METHODS.items():
        other = to_mapping(recipe_of(base, method))
        changed = {key for key in plain if plain[key] != other[key]}
        assert changed <= {"baseline", "loss", "model", "optim"}, name
        assert other["data"] == plain["data"]
        if other["optim"] != plain["optim"]:
            assert other["optim"] == plain["optim"] | {"learning_rate": other["optim"]["learning_rate"]}
    trained = [method for method in QUALITY_METHODS.values() if not method.frozen and not method.untrained]
    assert len({config_key(recipe_of(base, method), []) for method in trained}) == len(trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("promptembeder",)}, "unknown method 'promptembeder'. Did you mean 'promptembedder'?"),
        ({"timed": ("static-shared",)}, "'static-shared' is to be timed and is none of the methods"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(config: QualityConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        dataclasses.replace(config, **change)


def _content(method: str, **settings: Any) -> dict[str, Any]:
    run = QualityRun(
        method=method,
        reader="r",
        budget="steps",
        steps=3,
        seconds=1.5,
        seed=0,
        scores={"A": 50.0, "B": 70.0},
        mean=60.0,
        held_out={"seen": 90.0, "unseen": 89.0},
        fallbacks={f"{method}-default": {"A": 10.0, "B": 20.0}},
    )
    shared = {"readers": ["r"], "methods": [method], "timed": [], "seeds": [0], "work": "w", "batch_size": 4}
    return quality_content(
        [run],
        {
            "commands": [f"bench {method}"],
            "settings": {**shared, "limit": 9, "rows": 7, **settings},
            "machine": {"cores": 1},
            "versions": {"torch": "2"},
        },
    )


def test_results_of_several_commands_fill_one_file_if_their_settings_agree(tmp_path: Path) -> None:
    write_quality(tmp_path, _content("static"))
    both = quality_with_held(tmp_path, _content("lora-1e-3"))
    assert [run["method"] for run in both["runs"]] == ["static", "static-default", "lora-1e-3", "lora-1e-3-default"]
    assert both["commands"] == ["bench static", "bench lora-1e-3"]
    assert both["settings"]["methods"] == ["static", "lora-1e-3"]
    assert quality_with_held(tmp_path, _content("static")) == _content(
        "static"
    )  # its own runs take the place of the old
    with pytest.raises(ConfigError, match="holds runs with batch_size 4, these have 8"):
        quality_with_held(tmp_path, _content("lora-1e-3", batch_size=8))
    with pytest.raises(ConfigError, match="another machine"):
        quality_with_held(tmp_path, _content("lora-1e-3") | {"machine": {"cores": 2}})


def test_the_page_shows_the_best_first_and_says_how_it_was_made() -> None:
    page = quality_markdown(_content("static"))
    lines = [line for line in page.splitlines() if line.startswith("| static")]
    assert lines[0].startswith("| static | steps | 0 | 3 | 1.5 | 60.0 | 50.0 | 70.0")
    assert lines[1].startswith("| static-default | steps | 0 | 3 | 1.5 | 15.0 |")
    assert "    bench static" in page
    assert "torch 2" in page
