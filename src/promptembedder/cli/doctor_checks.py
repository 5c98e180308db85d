"""What `doctor` looks at: packages, devices, backbones, the hub, and whether vectors come out right."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from promptembedder.errors import BackboneError, PromptEmbedderError

__all__ = [
    "Finding",
    "as_json",
    "backbones",
    "caches",
    "compute",
    "devices",
    "extras",
    "hub",
    "packages",
    "saved_model",
]

_TEXTS = ["A river runs to the sea.", "short", "A much longer text, so that the others are padded beside it. " * 3]
_INSTRUCTIONS = ["Represent the topic", "Represent the mood"]
_MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-2}  # between unit vectors; devices sum differently


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `ok`, `absent` (not there, and nothing needs it), or `broken`.
        mend: What to do; empty where there is nothing to do.
    """

    part: str
    name: str
    state: str
    says: str
    mend: str = ""


def packages() -> Iterator[Finding]:
    """What every use needs, with the versions that are installed."""
    for wanted in _requirements(extra=None):
        found = _installed(wanted)
        if found is None:
            mend = f'pip install "{wanted.name}{wanted.specifier}"'
            yield Finding(part="package", name=wanted.name, state="broken", says=_lack(wanted), mend=mend)
        else:
            yield Finding(part="package", name=wanted.name, state="ok", says=found)


def extras() -> Iterator[Finding]:
    """The optional parts: present where all that they need is."""
    # dev is for those who change the library, docs for its site
    names = [name for name in metadata("promptembedder").get_all("Provides-Extra", []) if name not in ("dev", "docs")]
    for name in names:
        wanted = list(_requirements(extra=name))
        missing = [_lack(one) for one in wanted if _installed(one) is None]
        if missing:
            mend = f'pip install "promptembedder[{name}]"'
            yield Finding(part="extra", name=name, state="absent", says=", ".join(missing), mend=mend)
        else:
            says = ", ".join(f"{one.name} {version(one.name)}" for one in wanted)
            yield Finding(part="extra", name=name, state="ok", says=says)


def _requirements(*, extra: str | None) -> Iterator[Requirement]:
    """What the package asks for: always, or with `extra` besides."""
    for line in requires("promptembedder") or []:
        wanted = Requirement(line)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if always == (extra is None) and (always or (wanted.marker and wanted.marker.evaluate({"extra": extra or ""}))):
            yield wanted


def _installed(wanted: Requirement) -> str | None:
    """The version that is there; None without one that fits."""
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return None
    return found if wanted.specifier.contains(found, prereleases=True) else None


def _lack(wanted: Requirement) -> str:
    try:
        return f"{wanted.name} {version(wanted.name)} is not {wanted.specifier}"
    except PackageNotFoundError:
        return f"no {wanted.name}"


def devices() -> Iterator[Finding]:
    """Each device that torch finds, and the number formats in which it multiplies rightly."""
    import torch

    from promptembedder.backbone import resolved_dtype

    names = ["cpu", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        errors = {kind: _product_error(name, kind) for kind in ("float32", "bfloat16", "float16")}
        right = [kind for kind, error in errors.items() if error is not None and error < _MAX_DIFFERENCE[kind]]
        auto = str(resolved_dtype("auto", device=name)).removeprefix("torch.")
        says = f"multiplies rightly in {', '.join(right) or 'nothing'}; a frozen LLM is read in {auto} (dtype auto)"
        if name.startswith("cuda"):
            says = f"{torch.cuda.get_device_name(name)}: {says}"
        broken = "float32" not in right or auto not in right
        mend = "install a build of torch for this device, or use --device cpu" if broken else ""
        yield Finding(part="device", name=name, state="broken" if broken else "ok", says=says, mend=mend)


def _product_error(device: str, kind: str) -> float | None:
    """Largest error of a small product, as a share of its largest entry; None where the device refuses."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = left @ right
    try:
        dtype = getattr(torch, kind)
        product = (left.to(device, dtype) @ right.to(device, dtype)).cpu().double()
    except (RuntimeError, TypeError):  # no kernel, no float64 to come from, or no memory
        return None
    return float((product - exact).abs().max() / exact.abs().max())


def backbones() -> Iterator[Finding]:
    """The backbones whose weights come inside installed packages."""
    from promptembedder.backbone import INSTALLED_MODELS, find_source

    for name, model in INSTALLED_MODELS.items():
        try:
            size = sum(part.stat().st_size for part in find_source(name).parts)
        except BackboneError as error:
            torn = "--force-reinstall" in str(error)
            says = "installed without its weights" if torn else "not installed"
            mend = f"{model.install}{' --force-reinstall' if torn else ''}"
            yield Finding(part="backbone", name=name, state="broken" if torn else "absent", says=says, mend=mend)
        else:
            yield Finding(part="backbone", name=name, state="ok", says=f"installed, {size / 1e6:.0f} MB")


def caches() -> Iterator[Finding]:
    """Backbones that were converted from GGUF, and the hub's models, as they lie on this disk."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    from promptembedder.backbone import INSTALLED_MODELS, default_cache_folder

    names = {model.sha256[:24]: name for name, model in INSTALLED_MODELS.items()}
    folder = default_cache_folder()
    made = [one.parent for one in sorted(folder.glob("gguf-v*/*/sizes.json"))]
    for one in made:
        says = f"converted from GGUF, {_folder_bytes(one) / 1e6:.0f} MB in {one}"
        yield Finding(part="cache", name=names.get(one.name, one.name), state="ok", says=says)
    if not made:
        yield Finding(part="cache", name="gguf", state="absent", says=f"nothing converted yet in {folder}")
    try:
        models = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        models = []
    for repo in sorted(models, key=lambda repo: repo.repo_id):
        yield Finding(part="cache", name=repo.repo_id, state="ok", says=f"hub, {repo.size_on_disk / 1e6:.0f} MB")
    if not models:
        says = f"no model of the hub in {constants.HF_HUB_CACHE}"
        yield Finding(part="cache", name="hub", state="absent", says=says)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hub() -> Finding:
    """Whether the hub answers: the one check that asks the network."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except (OSError, ValueError, RuntimeError) as error:
        return _unreachable(constants.ENDPOINT, error)
    except Exception as error:  # the client's own errors have no base that all its versions share
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")):
            raise
        return _unreachable(constants.ENDPOINT, error)
    return Finding(part="hub", name=constants.ENDPOINT, state="ok", says="answers")


def _unreachable(endpoint: str, error: Exception) -> Finding:
    mend = "unset HF_HUB_OFFLINE, check the network, or set HF_ENDPOINT to a mirror"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Finding(part="hub", name=endpoint, state="broken", says=reason, mend=mend)


def compute() -> Finding:
    """Whether a tiny random model gives the same vectors alone, in a padded batch, and under several instructions."""
    import numpy as np

    from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig

    backbone = BackboneConfig(source="random:tiny-llama", dtype="float32")
    model = PromptEmbedder.create(config=ModelConfig(prompter=PrompterConfig(backbone=backbone), reader=backbone))
    model.eval()
    each = model.encode_instructions(_TEXTS, _INSTRUCTIONS)
    differences = [0.0]
    for vectors, instruction in zip(each, _INSTRUCTIONS, strict=True):
        together = model.encode(_TEXTS, prompt=instruction, show_progress_bar=False)
        alone = [model.encode([text], prompt=instruction, show_progress_bar=False)[0] for text in _TEXTS]
        differences += [float(np.abs(together - vectors).max()), float(np.abs(np.stack(alone) - vectors).max())]
    lengths = float(np.abs(np.linalg.norm(each, axis=-1) - 1).max())
    worst = max(*differences, lengths)
    says = f"{model.device}: alone, in a batch and under several instructions within {worst:.1e}"
    if np.isfinite(each).all() and worst <= _MAX_DIFFERENCE["float32"]:
        return Finding(part="self-test", name="random:tiny-llama", state="ok", says=says)
    mend = "another device or other versions of torch and transformers; please report it"
    return Finding(part="self-test", name="random:tiny-llama", state="broken", says=says, mend=mend)


def saved_model(folder: Path, *, reader: str | None) -> Finding:
    """Whether a saved model still computes the vector that was saved with it."""
    from promptembedder.model import PromptEmbedder, check_self_test

    try:
        model = PromptEmbedder.from_pretrained(folder, reader=reader)
        cosine = check_self_test(model, folder)
    except (PromptEmbedderError, json.JSONDecodeError) as error:
        return Finding(part="self-test", name=str(folder), state="broken", says=str(error), mend="see the line above")
    if cosine is None:
        says = "brings no vector for this reader: nothing to compare with"
        return Finding(part="self-test", name=str(folder), state="absent", says=says)
    says = f"cosine {cosine:.6f} to the vector that was saved with it, on {model.device}"
    return Finding(part="self-test", name=str(folder), state="ok", says=says)


def as_json(finding: Finding) -> dict[str, Any]:
    """The finding for `--json`."""
    return {key: value for key, value in vars(finding).items() if value}
