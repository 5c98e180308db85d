"""`promptembedder doctor [MODEL]`: check the installation and self-test this machine."""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption
from promptembedder.errors import BackboneError, PromptEmbedderError, SaveError, first_line
from promptembedder.storage import check_writable

if TYPE_CHECKING:  # a slow import that `--help` does not need
    from packaging.requirements import Requirement

__all__ = ["doctor"]

_MARKS = {"ok": "[green]ok    [/]", "absent": "[yellow]absent[/]", "broken": "[red]broken[/]"}
_TEXTS = ["A river runs to the sea.", "short", "A much longer text, so that the others are padded beside it. " * 3]
_INSTRUCTIONS = ["Represent the topic", "Represent the mood"]
_MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-2}  # between unit vectors; devices sum differently


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check.

    Attributes:
        state: `ok`, `absent` (optional and not installed), or `broken`.
        fix: How to fix it. Empty if nothing is to be done.
    """

    part: str
    name: str
    state: str
    detail: str
    fix: str = ""


def doctor(
    model: Annotated[Path | None, typer.Argument(help="Folder of a saved model to test as well.")] = None,
    reader: ReaderOption = None,
    online: Annotated[
        bool, typer.Option("--online", help="Also check that the hub is reachable. Off: no network.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check versions, extras, devices, backbones and caches, and self-test this machine. Exit code 1 if anything fails.

    Example: promptembedder doctor runs/quickstart
    """
    report = Report(as_json)
    python = {"version": platform.python_version(), "platform": platform.platform()}
    report.print(f"Python {python['version']} on {python['platform']}")
    findings = list(_collect_findings(model, reader, online=online))
    broken = [finding for finding in findings if finding.state == "broken"]
    for line in _format_lines(findings):
        report.print(line)
    report.print(f"{len(broken)} broken" if broken else "nothing is broken")
    listed = [{key: value for key, value in vars(finding).items() if value} for finding in findings]
    report.result({"python": python, "findings": listed, "broken": len(broken)})
    if broken:
        raise typer.Exit(1)


def _collect_findings(model: Path | None, reader: str | None, *, online: bool) -> Iterator[Finding]:
    yield from packages()
    yield from extras()
    yield from devices()
    yield from backbones()
    yield from caches()
    if online:
        yield hub()
    yield compute()
    if model is not None:
        yield saved_model(model, reader=reader)


def _format_lines(findings: list[Finding]) -> Iterator[str]:
    """Format one line for each finding, broken ones last. All correct packages share one line."""
    good = [finding for finding in findings if finding.part == "package" and finding.state == "ok"]
    yield f"{_MARKS['ok']} packages: {', '.join(f'{finding.name} {finding.detail}' for finding in good)}"
    for finding in sorted(findings, key=lambda finding: finding.state == "broken"):
        if finding not in good:
            verb = "fix" if finding.state == "broken" else "install"
            fix = f". To {verb} it: {finding.fix}" if finding.fix else ""
            yield f"{_MARKS[finding.state]} {escape(f'{finding.part} {finding.name}: {finding.detail}{fix}')}"


def packages() -> Iterator[Finding]:
    """Check the required packages and their versions."""
    for requirement in _requirements(extra=None):
        name, installed = requirement.name, _installed(requirement)
        if installed is None:
            fix = f'pip install "{name}{requirement.specifier}"'
            yield Finding(part="package", name=name, state="broken", detail=_missing_text(requirement), fix=fix)
        else:
            yield Finding(part="package", name=name, state="ok", detail=installed)


def extras() -> Iterator[Finding]:
    """Check the extras. An extra is present if all its packages are."""
    for name in metadata("promptembedder").get_all("Provides-Extra", []):
        if name in ("dev", "docs"):  # for contributors
            continue
        requirements = list(_requirements(extra=name))
        missing = [_missing_text(one) for one in requirements if _installed(one) is None]
        if missing:
            fix = f'pip install "promptembedder[{name}]"'
            yield Finding(part="extra", name=name, state="absent", detail=", ".join(missing), fix=fix)
        else:
            detail = ", ".join(f"{one.name} {version(one.name)}" for one in requirements)
            yield Finding(part="extra", name=name, state="ok", detail=detail)


def _requirements(*, extra: str | None) -> "Iterator[Requirement]":
    """Yield the unconditional requirements, or those that `extra` adds."""
    from packaging.requirements import Requirement

    for line in requires("promptembedder") or []:
        requirement = Requirement(line)
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if always == (extra is None) and (
            always or (requirement.marker and requirement.marker.evaluate({"extra": extra or ""}))
        ):
            yield requirement


def _installed(requirement: "Requirement") -> str | None:
    """Return the installed version, or None if no matching one is installed."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return None
    return installed if requirement.specifier.contains(installed, prereleases=True) else None


def _missing_text(requirement: "Requirement") -> str:
    try:
        return f"{requirement.name} {version(requirement.name)} is not {requirement.specifier}"
    except PackageNotFoundError:
        return f"no {requirement.name}"


def devices() -> Iterator[Finding]:
    """Check each device of torch: the dtypes in which its matrix products are accurate."""
    import torch

    from promptembedder.backbone import resolve_dtype

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        errors = {kind: _product_error(name, kind) for kind in ("float32", "bfloat16", "float16")}
        right = [kind for kind, error in errors.items() if error is not None and error < _MAX_DIFFERENCE[kind]]
        auto = str(resolve_dtype("auto", device=name)).removeprefix("torch.")
        detail = f"accurate in {', '.join(right) or 'no dtype'}; dtype auto is {auto}"
        if name.startswith("cuda"):
            detail = f"{torch.cuda.get_device_name(name)}: {detail}"
        broken = "float32" not in right or auto not in right
        fix = "install a build of torch for this device, or use --device cpu" if broken else ""
        yield Finding(part="device", name=name, state="broken" if broken else "ok", detail=detail, fix=fix)


def _product_error(device: str, kind: str) -> float | None:
    """Compute the maximum relative error of a small matrix product, or None if the device cannot compute it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = left @ right
    try:
        dtype = getattr(torch, kind)
        product = (left.to(device, dtype) @ right.to(device, dtype)).cpu().double()
    except (RuntimeError, TypeError):  # no kernel, no float64, or out of memory
        return None
    return float((product - exact).abs().max() / exact.abs().max())


def backbones() -> Iterator[Finding]:
    """Check the backbones whose weights come in Python packages."""
    from promptembedder.backbone import INSTALLED_MODELS, find_source

    for name, model in INSTALLED_MODELS.items():
        try:
            size = sum(part.stat().st_size for part in find_source(name).parts)
        except BackboneError as error:
            if "--force-reinstall" in str(error):
                state, detail, fix = "broken", "installed without its weights", f"{model.install} --force-reinstall"
            else:
                state, detail, fix = "absent", "not installed", model.install
        else:
            state, detail, fix = "ok", f"installed, {size / 1e6:.0f} MB", ""
        yield Finding(part="backbone", name=name, state=state, detail=detail, fix=fix)


def caches() -> Iterator[Finding]:
    """List the converted GGUF backbones and the hub models on this disk."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    from promptembedder.backbone import INSTALLED_MODELS, default_cache_folder

    names = {model.sha256[:24]: name for name, model in INSTALLED_MODELS.items()}
    folder = default_cache_folder()
    for path in (folder, Path(constants.HF_HUB_CACHE)):
        try:
            check_writable(path)
        except SaveError as error:
            fix = "set HF_HOME to a folder that can be written"
            yield Finding(part="cache", name=str(path), state="broken", detail=str(error).partition(". ")[0], fix=fix)
    found = [
        (names.get(one.name, one.name), f"converted from GGUF, {_folder_bytes(one) / 1e6:.0f} MB in {one}")
        for one in (sizes.parent for sizes in sorted(folder.glob("gguf-v*/*/sizes.json")))
    ]
    if not found:
        yield Finding(part="cache", name="gguf", state="absent", detail=f"nothing converted yet in {folder}")
    try:
        models = sorted((repo.repo_id, repo) for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        models = []
    found += [(name, f"hub, {repo.size_on_disk / 1e6:.0f} MB") for name, repo in models]
    for name, detail in found:
        yield Finding(part="cache", name=name, state="ok", detail=detail)
    if not models:
        detail = f"no model of the hub in {constants.HF_HUB_CACHE}"
        yield Finding(part="cache", name="hub", state="absent", detail=detail)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hub() -> Finding:
    """Check that the hub is reachable. The only check that uses the network."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the client's errors have no base class common to all its versions
        fix = "unset HF_HUB_OFFLINE, check the network, or set HF_ENDPOINT to a mirror"
        return Finding(part="hub", name=constants.ENDPOINT, state="broken", detail=first_line(error), fix=fix)
    return Finding(part="hub", name=constants.ENDPOINT, state="ok", detail="reachable")


def compute() -> Finding:
    """Check that a tiny random model gives equal vectors alone, in a padded batch and under several instructions."""
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
    detail = f"{model.device}: alone, in a batch and under several instructions within {worst:.1e}"
    if np.isfinite(each).all() and worst <= _MAX_DIFFERENCE["float32"]:
        return Finding(part="self-test", name="random:tiny-llama", state="ok", detail=detail)
    fix = "try another device or other versions of torch and transformers, and report the problem"
    return Finding(part="self-test", name="random:tiny-llama", state="broken", detail=detail, fix=fix)


def saved_model(folder: Path, *, reader: str | None) -> Finding:
    """Check that a saved model still computes its self-test vector."""
    from promptembedder.model import PromptEmbedder, check_self_test

    try:
        model = PromptEmbedder.from_pretrained(folder, reader=reader)
        cosine = check_self_test(model, folder)
    except (PromptEmbedderError, json.JSONDecodeError) as error:
        return Finding(part="self-test", name=str(folder), state="broken", detail=str(error), fix="see the line above")
    if cosine is None:
        detail = "contains no self-test vector for this reader"
        return Finding(part="self-test", name=str(folder), state="absent", detail=detail)
    detail = f"cosine {cosine:.6f} to its self-test vector, on {model.device}"
    return Finding(part="self-test", name=str(folder), state="ok", detail=detail)
