"""Bundles for a machine without a network, and stages that fail alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.offline.bundle import MANIFEST_NAME, extract_bundle, write_bundle
from benchmarks.offline.cli import main
from benchmarks.offline.measure import JOURNAL_NAME, STAGES, MeasureConfig, StageError, measure, run_process
from benchmarks.offline.packages import ROOT
from benchmarks.offline.stages import StageResult, require_memory, run_stage
from promptembedder.errors import ConfigError, DataError

PART_BYTES = 10_000
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two files in at least three parts."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.bin").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "in" / "deep" / "b.txt").write_text("grüße", encoding="utf-8")
    write_bundle(
        {"in": tmp_path / "in"}, tmp_path / "bundle", part_bytes=PART_BYTES, facts={"data": True, "python": PYTHON}
    )
    return tmp_path / "bundle"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command, check for exit code 2 and one line on stderr, and return the line."""

    def call(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return call


def test_extracted_files_equal_the_archived_ones(bundle: Path, tmp_path: Path) -> None:
    manifest = extract_bundle(bundle, tmp_path / "out")
    assert manifest["data"] is True
    for name in ("a.bin", "deep/b.txt"):
        assert (tmp_path / "out" / "in" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in"]


def test_no_part_exceeds_the_limit(bundle: Path) -> None:
    sizes = [part.stat().st_size for part in bundle.glob("bundle.tar.*")]
    assert len(sizes) > 2
    assert max(sizes) <= PART_BYTES


def test_parts_of_an_earlier_bundle_are_deleted(bundle: Path, tmp_path: Path) -> None:
    parts = write_bundle({"in": tmp_path / "in"}, bundle, part_bytes=1 << 20)
    assert sorted(path.name for path in bundle.iterdir()) == sorted([MANIFEST_NAME, *(part.name for part in parts)])


def test_all_missing_parts_are_named(bundle: Path, tmp_path: Path) -> None:
    for name in ("bundle.tar.000", "bundle.tar.002"):
        (bundle / name).unlink()
    with pytest.raises(DataError, match=r"missing parts in .*: bundle.tar.000, bundle.tar.002. Copy them"):
        extract_bundle(bundle, tmp_path / "out")


@pytest.mark.parametrize("damage", [lambda part: part[:-1] + b"x", lambda part: part[:-1], lambda part: b""])
def test_a_damaged_part_is_named_and_nothing_is_extracted(
    bundle: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    part = bundle / "bundle.tar.001"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(DataError, match=r"damaged parts in .*: bundle.tar.001. Copy them again"):
        extract_bundle(bundle, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "sha256": "x", "parts": [{"name": "../a"}]}'])
def test_a_damaged_manifest_is_refused(bundle: Path, tmp_path: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{MANIFEST_NAME} is damaged. Copy the manifest again"):
        extract_bundle(bundle, tmp_path / "out")


def test_a_part_outside_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    manifest["parts"][0]["name"] = "../in/a.bin"
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        extract_bundle(bundle, tmp_path / "out")


def test_install_reports_a_missing_manifest_part_or_python_in_one_line(
    bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    target = tmp_path / "site"
    assert "Copy the manifest into the folder" in refused("install", tmp_path / "in", "--target", target)
    (bundle / "bundle.tar.001").rename(tmp_path / "part")
    assert "missing parts" in refused("install", bundle, "--target", target)
    (tmp_path / "part").rename(bundle / "bundle.tar.001")
    manifest = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    (bundle / MANIFEST_NAME).write_text(json.dumps({**manifest, "python": "3.99"}), encoding="utf-8")
    assert "the bundle is for Python 3.99" in refused("install", bundle, "--target", target)
    assert not target.exists()


def test_install_needs_no_registry_and_keeps_packages_and_data_apart(tmp_path: Path) -> None:
    """Tables could not be hashed: dill pickled the modules of a folder that was not called site-packages."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tasks.json").write_text("[]", encoding="utf-8")
    write_toy_wheel(tmp_path / "wheels")
    facts = {"data": True, "python": PYTHON}
    write_bundle({name: tmp_path / name for name in ("wheels", "data")}, tmp_path / "bundle", facts=facts)
    target = tmp_path / "site"
    for _ in range(2):  # a second installation replaces the first
        assert main(["install", str(tmp_path / "bundle"), "--target", str(target), "--no-doctor"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["data", "site-packages"]
    assert (target / "site-packages" / "toy.py").read_text(encoding="utf-8") == "NAME = 'toy'\n"
    assert (target / "data" / "tasks.json").read_text(encoding="utf-8") == "[]"


def write_toy_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", "NAME = 'toy'\n")
        wheel.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr(
            "toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("toy-1.0.dist-info/RECORD", "")


def test_unknown_stages_and_numbers_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "unknown stage 'sped'. Use some of: tests" in refused("measure", "sped", "-o", tmp_path)
    assert "train_minutes must be > 0, got 0.0" in refused("measure", "--train-minutes", "0", "-o", tmp_path)
    assert "limit_s must be > 0, got -1.0" in refused("measure", "--limit", "-1", "-o", tmp_path)
    assert "python must be a version such as 3.12" in refused("prepare", tmp_path / "b", "--python", "three")
    assert "is not a folder. Check --data" in refused("prepare", tmp_path / "b", "--data", tmp_path / "none")


def test_all_stages_fit_twelve_minutes_and_the_first_three_five() -> None:
    limits = [MeasureConfig(output="").time_limit(stage) for stage in STAGES]
    assert sum(limits) <= 12 * 60
    assert sum(limits[:3]) <= 5 * 60


def test_longer_training_has_a_longer_limit() -> None:
    usual, longer = (MeasureConfig(output="", train_minutes=minutes).time_limit("train") for minutes in (2, 5))
    assert longer - usual == 180


def test_data_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"does not contain tasks.json. Check --data"):
        MeasureConfig(output="", data=str(tmp_path)).data_folder()
    with pytest.raises(ConfigError, match="no data folder is given"):
        MeasureConfig(output="").data_folder()


def test_a_process_over_its_time_limit_ends_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script]
    log = tmp_path / "log"
    with pytest.raises(StageError, match=r"exceeded its time limit of 2 s. Run it again to resume; log: .*log"):
        run_process(command, log, limit_s=2, environment=dict(os.environ))
    child = int(log.read_text(encoding="utf-8"))
    for _ in range(50):
        if not _is_running(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} still runs")


def test_a_failed_process_reports_its_last_error_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('error: no usable GPU: none'); print('later'); raise SystemExit(3)"]
    with pytest.raises(StageError, match=r"^no usable GPU: none \(exit code 3; log: \S+\)$"):
        run_process(command, tmp_path / "log", limit_s=60, environment=dict(os.environ))


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def test_install_needs_no_other_packages(bundle: Path, tmp_path: Path) -> None:
    """On a bare Python `install` must run before anything is installed."""
    (bundle / "bundle.tar.000").unlink()
    command = [
        sys.executable,
        "-S",
        "-m",
        "benchmarks.offline",
        "install",
        str(bundle),
        "--target",
        str(tmp_path / "s"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert re.fullmatch(r"error: missing parts in \S+: bundle.tar.000. Copy them into the folder.\n", done.stderr)


def test_a_stage_over_its_time_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    stages = ["tests", "efficiency"]
    stopped = measure(stages, MeasureConfig(output=str(tmp_path), smoke=True, limit_s=0.5))
    assert [(each.stage, each.state) for each in stopped] == [("tests", "failed"), ("efficiency", "failed")]
    assert all("exceeded its time limit of 0.5 s" in each.error for each in stopped)
    assert all(each.error.count("\n") == 0 for each in stopped)


def test_without_a_gpu_a_stage_fails_in_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(StageError, match=r"^no usable GPU: .+$"):
        run_stage("speed", MeasureConfig(output=str(tmp_path)))


def test_too_little_memory_for_a_shape_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.memory.room_for", lambda device: 1 << 30)
    require_memory(["random:smollm2-135m", "random:tiny-llama"], "cpu")
    with pytest.raises(StageError, match=r"^random:llama-7b need 12.6 GiB for their weights, cpu has 1.0 GiB free"):
        require_memory(["random:llama-7b"], "cpu")


def test_parts_of_a_stopped_stage_are_kept_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    config = MeasureConfig(output=str(tmp_path), smoke=True)
    result = StageResult("speed", config)
    result.add("one", {"seconds": 1})
    result.attempt("two", lambda: raise_out_of_memory())
    assert json.loads(result.path.read_text(encoding="utf-8"))["parts"]["two"] == {"error": "CUDA out of memory"}
    again = StageResult("speed", config)
    again.attempt("one", lambda: pytest.fail("measured again"))
    again.attempt("two", lambda: {"seconds": 2})
    again.finish()
    content = json.loads(again.path.read_text(encoding="utf-8"))
    assert content["complete"]
    assert content["parts"] == {"one": {"seconds": 1}, "two": {"seconds": 2}}


def test_parts_of_other_inputs_or_of_a_finished_stage_are_measured_again(tmp_path: Path) -> None:
    config = MeasureConfig(output=str(tmp_path), smoke=True)
    StageResult("speed", config).add("one", {"seconds": 1})
    assert "one" in StageResult("speed", config)
    assert "one" not in StageResult("speed", MeasureConfig(output=str(tmp_path), smoke=True, data="other"))
    finished = StageResult("speed", config)
    finished.add("one", {"seconds": 1})
    finished.finish()
    assert "one" not in StageResult("speed", config)


def test_a_stage_whose_parts_all_fail_fails(tmp_path: Path) -> None:
    result = StageResult("speed", MeasureConfig(output=str(tmp_path), smoke=True))
    result.attempt("one", lambda: raise_out_of_memory())
    with pytest.raises(StageError, match="^CUDA out of memory$"):
        result.finish()


def raise_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory\nmore")


@pytest.mark.minutes
def test_the_smoke_run_finishes_all_stages_and_a_rerun_skips_them(tmp_path: Path) -> None:
    config = MeasureConfig(output=str(tmp_path), smoke=True, limit_s=300)
    assert [(each.state, each.error) for each in measure(list(STAGES), config)] == [("done", "")] * len(STAGES)
    for stage in STAGES:
        content = json.loads((tmp_path / f"{stage}.json").read_text(encoding="utf-8"))
        assert content["complete"]
        assert content["command"] == f"python -m benchmarks.offline measure {stage} --smoke"
        assert all("error" not in part for part in content["parts"].values())
        assert {"machine", "versions", "device", "driver"} <= content.keys()
    assert (tmp_path / JOURNAL_NAME).is_file()
    assert max(path.stat().st_size for path in (tmp_path / "train-parts").iterdir()) <= 15 << 20
    assert [each.state for each in measure(list(STAGES), config)] == ["skipped"] * len(STAGES)
    (tmp_path / "train.json").unlink()
    shutil.rmtree(tmp_path / "train-model")
    again = measure(list(STAGES), config)
    assert [each.stage for each in again if each.state == "done"] == ["train"]
