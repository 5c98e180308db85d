"""Wheel and sdist hold what they must and nothing else, and come out the same wherever they are built."""

import email
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = f"{PROJECT['project']['name']}-{PROJECT['project']['version']}"
SHIPPED = [pattern.split("/")[0] for pattern in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]]


def _copied(folder: Path, *, mode: int, seconds: int) -> Path:
    """A copy of what is shipped, with other dates and modes, and with what a used checkout has lying about."""
    folder.mkdir()
    for name in (*SHIPPED, "pyproject.toml", ".gitignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    cache = folder / "src" / "promptembedder" / "__pycache__"
    cache.mkdir()
    (cache / f"old.cpython-{seconds}.pyc").write_bytes(b"")
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode | 0o700 if path.is_dir() else mode)
        os.utime(path, (seconds, seconds))
    return folder


def _built(folder: Path, *, umask: int, target: str | None = None) -> dict[str, Path]:
    """Wheel and sdist of a folder, by suffix."""
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(folder / "out")]
    words += [] if target is None else ["-t", target]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(words, cwd=folder, umask=umask, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.suffix: path for path in (folder / "out").iterdir()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and sdist, by suffix."""
    folder = _copied(tmp_path_factory.mktemp("one") / "tree", mode=0o600, seconds=1_000_000_000)
    return _built(folder, umask=0o077)


def test_archives_do_not_depend_on_dates_modes_or_location(archives: dict[str, Path], tmp_path: Path) -> None:
    others = _built(_copied(tmp_path / "somewhere-else", mode=0o664, seconds=1_500_000_000), umask=0o002)
    assert archives.keys() == others.keys() == {".whl", ".gz"}
    assert {suffix: _sha256(path) for suffix, path in archives.items()} == {
        suffix: _sha256(path) for suffix, path in others.items()
    }


def test_sdist_builds_the_same_wheel_as_the_tree(archives: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(archives[".gz"]) as archive:
        archive.extractall(tmp_path, filter="data")
    assert _sha256(_built(tmp_path / NAME, umask=0o022, target="wheel")[".whl"]) == _sha256(archives[".whl"])


def test_wheel_contains_package_licence_and_metadata(archives: dict[str, Path]) -> None:
    with zipfile.ZipFile(archives[".whl"]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    source = ROOT / "src"
    package = {
        path.relative_to(source).as_posix()
        for path in (source / "promptembedder").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    described = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert names == package | described | {f"{NAME}.dist-info/licenses/LICENSE"}
    assert {f"promptembedder/{name}" for name in ("py.typed", "model/model_card.md.jinja", "server/home.html")} < names


def test_wheel_requires_the_declared_dependencies(archives: dict[str, Path]) -> None:
    with zipfile.ZipFile(archives[".whl"]) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    needed = {Requirement(line) for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert needed == {Requirement(line) for line in PROJECT["project"]["dependencies"]}
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["project"]["optional-dependencies"])


def test_sdist_contains_the_files_of_the_tests_and_no_caches(archives: dict[str, Path]) -> None:
    with tarfile.open(archives[".gz"]) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert {"pyproject.toml", "constraints.txt", "tests/conftest.py", "LICENSE", "SECURITY.md"} < names
    assert [name for name in names if name.endswith(".pyc") or name.startswith((".venv", "dist", "build"))] == []
