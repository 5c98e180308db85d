"""The bill of materials names what runs with the library, and nothing else."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sbom")
    words = [sys.executable, str(ROOT / ".ci" / "sbom.py"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr  # the script itself holds the bill against CycloneDX' schema
    return folder


@pytest.fixture(scope="module")
def bill(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sbom.json").read_text(encoding="utf-8"))


def test_bill_lists_every_installed_dependency(bill: dict[str, Any]) -> None:
    listed = {component["name"]: component["version"] for component in bill["components"]}
    needed = [Requirement(line) for line in importlib.metadata.requires("promptembedder") or []]
    names = {canonicalize_name(need.name) for need in needed if need.marker is None}
    assert {"torch", "transformers", "safetensors"} < names <= listed.keys()
    assert {name: importlib.metadata.version(name) for name in listed} == listed
    assert all(component["licenses"] for component in bill["components"])


def test_bill_omits_development_dependencies(bill: dict[str, Any]) -> None:
    listed = {component["name"] for component in bill["components"]}
    assert not listed & {"pytest", "mypy", "ruff", "hatchling", "promptembedder"}
    assert bill["metadata"]["component"]["name"] == "promptembedder"


def test_every_listed_distribution_is_required_by_another(bill: dict[str, Any]) -> None:
    needed = {ref for entry in bill["dependencies"] for ref in entry.get("dependsOn", [])}
    assert {component["bom-ref"] for component in bill["components"]} == needed


def test_bill_and_pins_list_the_same_distributions(folder: Path, bill: dict[str, Any]) -> None:
    pins = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert pins == [f"{component['name']}=={component['version']}" for component in bill["components"]]
