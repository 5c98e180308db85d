"""`promptembedder doctor [MODEL]`: check the installation and self-test this machine."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption

if TYPE_CHECKING:  # a slow import that `--help` does not need
    from promptembedder.cli.doctor_checks import Finding

__all__ = ["doctor"]

_MARKS = {"ok": "[green]ok    [/]", "absent": "[yellow]absent[/]", "broken": "[red]broken[/]"}


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
    from promptembedder.cli.doctor_checks import as_json as finding_as_json

    report = Report(as_json)
    python = {"version": platform.python_version(), "platform": platform.platform()}
    report.print(f"Python {python['version']} on {python['platform']}")
    with one_line_errors():
        findings = list(_collect_findings(model, reader, online=online))
    broken = [finding for finding in findings if finding.state == "broken"]
    for line in _format_lines(findings):
        report.print(line)
    report.print(f"{len(broken)} broken" if broken else "nothing is broken")
    listed = [finding_as_json(finding) for finding in findings]
    report.result({"python": python, "findings": listed, "broken": len(broken)})
    if broken:
        raise typer.Exit(1)


def _collect_findings(model: Path | None, reader: str | None, *, online: bool) -> "Iterator[Finding]":
    from promptembedder.cli import doctor_checks as checks

    yield from checks.packages()
    yield from checks.extras()
    yield from checks.devices()
    yield from checks.backbones()
    yield from checks.caches()
    if online:
        yield checks.hub()
    yield checks.compute()
    if model is not None:
        yield checks.saved_model(model, reader=reader)


def _format_lines(findings: "list[Finding]") -> Iterator[str]:
    """Format one line for each finding, broken ones last. All correct packages share one line."""
    good = [finding for finding in findings if finding.part == "package" and finding.state == "ok"]
    yield f"{_MARKS['ok']} packages: {', '.join(f'{finding.name} {finding.detail}' for finding in good)}"
    for finding in sorted(findings, key=lambda finding: finding.state == "broken"):
        if finding not in good:
            verb = "fix" if finding.state == "broken" else "install"
            fix = f". To {verb} it: {finding.fix}" if finding.fix else ""
            yield f"{_MARKS[finding.state]} {escape(f'{finding.part} {finding.name}: {finding.detail}{fix}')}"
