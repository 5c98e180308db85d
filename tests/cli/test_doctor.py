"""What `promptembedder doctor` finds, and what it calls broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from promptembedder.cli import doctor as doctor_module

Run = Callable[..., Result]


def findings(result: Result) -> dict[tuple[str, str], dict[str, Any]]:
    listed = json.loads(result.stdout)["findings"]
    return {(one["part"], one["name"]): one for one in listed}


def test_a_machine_on_which_the_suite_runs_is_well(run: Run, saved_model: Path) -> None:
    result = run("doctor", saved_model, "--json")
    assert result.exit_code == 0
    found = findings(result)
    assert [one for one in found.values() if one["state"] == "broken"] == []
    assert found["package", "torch"]["state"] == found["extra", "serve"]["state"] == "ok"
    assert "float32" in found["device", "cpu"]["detail"]
    assert found["backbone", "smollm2-135m"]["state"] == "ok"
    assert found["self-test", "random:tiny-llama"]["state"] == "ok"
    assert "cosine 1.000000" in found["self-test", str(saved_model)]["detail"]


def test_a_model_that_computes_other_vectors_is_broken(run: Run, saved_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(saved_model, folder)
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    result = run("doctor", folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2].startswith(f"broken self-test {folder}: ")
    assert result.stdout.splitlines()[-1] == "1 broken"


def test_what_is_absent_comes_with_the_line_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor_module.version

    def without(name: str) -> str:
        if name in ("lancedb", "safetensors"):
            raise doctor_module.PackageNotFoundError(name)
        return "5.0" if name == "uvicorn" else "0.0.1" if name == "numpy" else known(name)

    monkeypatch.setattr(doctor_module, "version", without)
    extras = {one.name: one for one in doctor_module.extras()}
    assert (extras["search"].state, extras["search"].detail) == ("absent", "no lancedb")
    assert extras["search"].fix == 'pip install "promptembedder[search]"'
    packages = {one.name: one for one in doctor_module.packages()}
    assert (packages["safetensors"].state, packages["safetensors"].fix) == ("broken", 'pip install "safetensors>=0.5"')
    assert packages["numpy"].detail == "numpy 0.0.1 is not >=1.26"


def test_a_hub_out_of_reach_is_told_with_its_mend(run: Run) -> None:
    """The suite forbids the network, and so the hub's client refuses to ask."""
    result = run("doctor", "--online", "--json")
    assert result.exit_code == 1
    hub = next(one for (part, _), one in findings(result).items() if part == "hub")
    assert hub["state"] == "broken" and "HF_HUB_OFFLINE" in hub["fix"]


def test_home_that_cannot_be_written_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Loading a backbone failed, and doctor found nothing broken."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    broken = [one for one in doctor_module.caches() if one.state == "broken"]
    assert broken[0].name == str(tmp_path / "file" / "assets" / "promptembedder")
    assert broken[0].fix == "set HF_HOME to a folder that can be written"
    assert "Not a directory" in broken[0].detail
