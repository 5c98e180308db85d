"""What CI installs is pinned, and what is installed is what was pinned."""

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PINS = {
    canonicalize_name(name): version
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for name, version in [line.split("==")]
}


def _declared() -> dict[str, Requirement]:
    """Whatever pyproject.toml names: to build, to run, to develop, and in extras."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    lines = [*content["build-system"]["requires"], *project["dependencies"]]
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    return {line: Requirement(line) for line in lines}


def test_declared_dependencies_have_matching_pins() -> None:
    unpinned = [line for line, need in _declared().items() if canonicalize_name(need.name) not in PINS]
    assert unpinned == []
    wrong = [line for line, need in _declared().items() if PINS[canonicalize_name(need.name)] not in need.specifier]
    assert wrong == []


def test_installed_versions_equal_the_pins() -> None:
    """A local part, as in 2.13.0+cpu, says which build of that version it is."""
    installed = {
        canonicalize_name(found.metadata["Name"]): Version(found.version).public
        for found in importlib.metadata.distributions()
    }
    assert len(installed.keys() & PINS.keys()) > 50
    assert {name: installed[name] for name in installed.keys() & PINS.keys() if installed[name] != PINS[name]} == {}
