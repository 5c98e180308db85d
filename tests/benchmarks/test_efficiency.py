"""Laws of the efficiency benchmark: every cell once, in turns, never again, and never mixed with another machine's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.efficiency import benchmark as efficiency_module
from benchmarks.efficiency import cell as cell_module
from benchmarks.efficiency.benchmark import JOURNAL_NAME, EfficiencyProgress, run_efficiency
from benchmarks.efficiency.config import EfficiencyConfig
from benchmarks.efficiency.results import ratios_of, write_efficiency
from benchmarks.efficiency.step import StepMeter
from promptembedder.errors import BackboneError, ConfigError, DataError

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Workshop

SettingsOf = Callable[..., EfficiencyConfig]


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(row["method"], row["length"], row["batch"]) for row in rows]


def test_every_method_has_a_row_for_each_length_and_batch(
    settings_of: SettingsOf, in_this_process: Callable[..., StepMeter], tmp_path: Path
) -> None:
    settings = settings_of(repeats=2, batches=(4,), methods=("promptembedder", "lora"))
    result = run_efficiency(settings, tmp_path, start=in_this_process)
    grid = [(length, batch) for length in settings.lengths for batch in settings.batches]
    assert cells(result.rows) == [(method, *cell) for cell in grid for method in settings.methods]
    for row in result.rows:
        assert "error" not in row
        assert (row["repeats"], len(row["step_seconds_all"])) == (2, 2)
        assert row["step_seconds_min"] <= row["step_seconds"]
        tokens = 2 * row["batch"] * row["length"]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["step_seconds"])
        assert row["activation_bytes"] == row["peak_bytes"] - row["baseline_bytes"]
    assert cells(result.ratios) == [("lora", *cell) for cell in grid]


def test_ratios_are_over_the_method_of_this_library(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    result = run_efficiency(settings_of(), tmp_path, start=workshop.start)
    assert {row["activation_bytes"] for row in result.ratios if row["method"] == "lora"} == {5.0}
    assert {row["activation_bytes"] for row in result.ratios if row["method"] == "static"} == {1.0}
    for name in ("step_seconds", "step_cpu_seconds"):
        times = {round(row[name], 6) for row in result.ratios if row["method"] == "lora"}
        assert times == {round(len("lora") / len("promptembedder"), 6)}


def test_what_slows_a_whole_round_down_falls_out_of_the_ratio() -> None:
    rows = [
        {"method": name, "length": 8, "batch": 2, "activation_bytes": 1, "peak_bytes": 1}
        | {"step_seconds_all": seconds, "step_cpu_seconds_all": []}
        for name, seconds in (("promptembedder", [10.0, 1.0, 1.0]), ("lora", [30.0, 30.0, 3.0]))
    ]
    (ratio,) = ratios_of(rows)
    assert ratio["step_seconds"] == 3.0  # the medians would say 30
    assert ratio["step_cpu_seconds"] is None


def test_methods_take_turns_and_only_the_first_process_of_each_counts_memory(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    run_efficiency(settings_of(lengths=(8,), batches=(2,)), tmp_path, start=workshop.start)
    assert [(what, method) for what, method, *_ in workshop.visits] == [
        ("measure", "promptembedder"),
        ("timed", "promptembedder"),
        ("measure", "static"),
        ("timed", "static"),
        ("measure", "lora"),
        ("timed", "lora"),
        ("timed", "lora"),
        ("timed", "static"),
        ("timed", "promptembedder"),
        ("timed", "promptembedder"),
        ("timed", "static"),
        ("timed", "lora"),
    ]
    assert len(workshop.started) == 6  # the three of the second round stay for the third
    assert workshop.open == set()


def test_methods_that_do_not_fit_together_start_anew_at_each_visit(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_module, "room_for", lambda device: 1)
    run_efficiency(settings_of(lengths=(8,), batches=(2,)), tmp_path, start=workshop.start)
    assert len(workshop.started) == 9
    assert workshop.open == set()


def test_what_is_measured_is_not_measured_again(settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path) -> None:
    first = run_efficiency(settings_of(), tmp_path, start=workshop.start)
    visits = len(workshop.visits)
    assert run_efficiency(settings_of(), tmp_path, start=workshop.start) == first
    assert len(workshop.visits) == visits
    run_efficiency(settings_of(), tmp_path, overwrite=True, start=workshop.start)
    assert len(workshop.visits) == 2 * visits


def test_an_interrupted_run_goes_on_with_the_cell_that_it_lost(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    workshop.interrupt_after = 30  # a cell is 12 visits
    with pytest.raises(KeyboardInterrupt):
        run_efficiency(settings_of(), tmp_path, start=workshop.start)
    assert workshop.open == set()
    assert len((tmp_path / JOURNAL_NAME).read_text().splitlines()) == 1 + 2 * 3
    workshop.interrupt_after = None
    result = run_efficiency(settings_of(), tmp_path, start=workshop.start)
    assert len(workshop.visits) == 30 + 2 * 12
    assert len(result.rows) == 12
    assert len((tmp_path / JOURNAL_NAME).read_text().splitlines()) == 1 + 4 * 3


def test_other_settings_are_other_cells(settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path) -> None:
    run_efficiency(settings_of(), tmp_path, start=workshop.start)
    visits = len(workshop.visits)
    for changes in ({"repeats": 2}, {"dtype": "bfloat16"}, {"reader": "random:tiny-qwen3"}, {"memory_gib": 4.0}):
        result = run_efficiency(settings_of(**changes), tmp_path, start=workshop.start)
        assert len(result.rows) == 12
        assert len(workshop.visits) > visits
        visits = len(workshop.visits)
    run_efficiency(settings_of(methods=("static",), batches=(4, 8)), tmp_path, start=workshop.start)
    assert {visit[1:] for visit in workshop.visits[visits:]} == {("static", 8, 8), ("static", 16, 8)}


@pytest.mark.parametrize("part", ["machine", "versions"])
def test_another_machine_or_other_versions_are_refused(
    part: str, settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_efficiency(settings_of(), tmp_path, start=workshop.start)
    name = {"machine": "describe_machine", "versions": "versions"}[part]
    there = getattr(efficiency_module, name)()
    monkeypatch.setattr(efficiency_module, name, lambda: {**there, "another": "fact"})
    with pytest.raises(DataError, match=rf"another {part.removesuffix('s')} \(another differ\).*--overwrite"):
        run_efficiency(settings_of(), tmp_path, start=workshop.start)
    run_efficiency(settings_of(), tmp_path, overwrite=True, start=workshop.start)


def test_a_step_that_does_not_fit_is_recorded_and_larger_ones_are_skipped(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    workshop.limit = 200_000  # lora: 40 tokens in all
    settings = settings_of(methods=("promptembedder", "lora"), lengths=(8,), batches=(2, 4, 8, 16))
    for _ in range(2):  # the second time from the journal
        result = run_efficiency(settings, tmp_path, start=workshop.start)
        errors = {row["batch"]: row.get("error") for row in result.rows if row["method"] == "lora"}
        assert errors == {2: None, 4: None, 8: "out of memory", 16: "skipped: batch 8 ran out of memory"}
        assert all("error" not in row for row in result.rows if row["method"] == "promptembedder")
    assert [visit for visit in workshop.visits if visit[1:] == ("lora", 8, 8)] == [("measure", "lora", 8, 8)]
    assert [visit for visit in workshop.visits if visit[1:] == ("lora", 8, 16)] == []
    assert workshop.open == set()
    assert {(row["method"], row["batch"]) for row in result.ratios} == {("lora", 2), ("lora", 4)}


def test_the_largest_batch_is_estimated_or_searched_for(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    gib = 1_000_000 / (1 << 30)
    workshop.limit = int(gib * (1 << 30))
    settings = settings_of(methods=("promptembedder", "lora"), lengths=(8,), batches=(2, 4), memory_gib=gib)
    true = {"promptembedder": 999_000 // 8000, "lora": 999_000 // 40_000}
    fitted = run_efficiency(settings, tmp_path, start=workshop.start).largest_batch
    assert {row["method"]: row["batch"] for row in fitted} == true
    assert {row["how"] for row in fitted} == {"fitted"}
    settings = settings_of(**{**vars(settings), "search_largest": True})
    visits = len(workshop.visits)
    searched = run_efficiency(settings, tmp_path, start=workshop.start).largest_batch
    assert {row["how"] for row in searched} == {"searched"}
    assert {row["method"]: row["batch"] for row in searched} == true
    assert {what for what, *_ in workshop.visits[visits:]} == {"measure"}
    visits = len(workshop.visits)
    assert run_efficiency(settings, tmp_path, start=workshop.start).largest_batch == searched
    assert len(workshop.visits) == visits


def test_results_are_written_as_json_csv_and_a_page(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    workshop.limit = 200_000
    result = run_efficiency(settings_of(batches=(2, 4, 8)), tmp_path, start=workshop.start)
    paths = write_efficiency(result, tmp_path / "new")
    assert [path.name for path in paths] == ["efficiency.json", "efficiency.csv", "efficiency.md"]
    content = json.loads(paths[0].read_text())
    assert content == json.loads(json.dumps(result.content()))
    assert list(content) == ["command", "machine", "versions", "settings", "rows", "largest_batch", "ratios"]
    lines = paths[1].read_text().splitlines()
    assert lines[0].startswith("method,reader,prompter,device,dtype,length,batch,step_seconds,")
    assert len(lines) == 1 + len(result.rows)
    page = paths[2].read_text()
    assert result.command in page
    assert "| lora | 16 | 4 | out of memory |" in page
    assert all(version in page for version in result.versions.values())


def test_the_command_repeats_the_settings(settings_of: SettingsOf) -> None:
    command = settings_of(memory_gib=2.5, search_largest=True).command()
    assert command == (
        "python -m benchmarks efficiency --reader random:tiny-llama --prompter random:tiny-llama "
        "--methods promptembedder,static,lora --lengths 8,16 --batches 2,4 --memory-gib 2.5 "
        "--device cpu --dtype float32 --repeats 3 --search-largest"
    )


def test_progress_counts_to_the_end(settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path) -> None:
    told: list[EfficiencyProgress] = []
    run_efficiency(settings_of(), tmp_path, start=workshop.start, on_progress=told.append)
    assert {now.rows for now in told} == {12}
    assert [now.done for now in told] == sorted(now.done for now in told)
    assert told[-1].doing.endswith("16 tokens, batch 4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("promptembeder",)}, "unknown method 'promptembeder'. Did you mean 'promptembedder'"),
        ({"methods": ()}, "no method is named"),
        ({"lengths": ()}, "lengths must be numbers from 1"),
        ({"batches": (1, 8)}, "batches must be numbers from 2"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"memory_gib": 0.0}, "memory_gib must be > 0"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_settings_are_checked_at_the_door(changes: dict[str, Any], message: str, settings_of: SettingsOf) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(**changes)


def test_a_reader_that_is_not_there_is_refused_before_anything_starts(
    settings_of: SettingsOf, workshop: "Workshop", tmp_path: Path
) -> None:
    for reader in ("random:nothing", "no-such-model"):
        with pytest.raises(BackboneError, match=reader.removeprefix("random:")):
            run_efficiency(settings_of(reader=reader), tmp_path / "new", start=workshop.start)
    assert workshop.started == []
    assert not (tmp_path / "new").exists()
