"""`promptembedder doctor [MODEL]`: what is installed here, and whether vectors come out right."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, ReaderOption

if TYPE_CHECKING:  # importing it takes a while, and `--help` needs none of it
    from promptembedder.cli.doctor_checks import Finding

__all__ = ["doctor"]

_MARKS = {"ok": "[green]ok    [/]", "absent": "[yellow]absent[/]", "broken": "[red]broken[/]"}


def doctor(
    model: Annotated[Path | None, typer.Argument(help="Folder of a saved model to test, too.")] = None,
    reader: ReaderOption = None,
    online: Annotated[bool, typer.Option("--online", help="Ask the hub whether it answers; else no network.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Versions, extras, devices, backbones, caches, and a self-test of this machine. Exit code 1: something is broken.

    Example: promptembedder doctor runs/quickstart
    """
    from promptembedder.cli.doctor_checks import as_json as finding_as_json

    report = Report(as_json)
    python = {"version": platform.python_version(), "platform": platform.platform()}
    report.say(f"Python {python['version']} on {python['platform']}")
    with one_line_errors():
        findings = list(_findings(model, reader, online=online))
    broken = [finding for finding in findings if finding.state == "broken"]
    for line in _lines(findings):
        report.say(line)
    report.say(f"{len(broken)} broken" if broken else "nothing is broken")
    listed = [finding_as_json(finding) for finding in findings]
    report.result({"python": python, "findings": listed, "broken": len(broken)})
    if broken:
        raise typer.Exit(1)


def _findings(model: Path | None, reader: str | None, *, online: bool) -> "Iterator[Finding]":
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


def _lines(findings: "list[Finding]") -> Iterator[str]:
    """A line each, what is broken last, where it is seen; packages that are as they should be share one."""
    good = [finding for finding in findings if finding.part == "package" and finding.state == "ok"]
    yield f"{_MARKS['ok']} packages: {', '.join(f'{finding.name} {finding.says}' for finding in good)}"
    for finding in sorted(findings, key=lambda finding: finding.state == "broken"):
        if finding not in good:
            mend = f". To {'mend' if finding.state == 'broken' else 'get'} it: {finding.mend}" if finding.mend else ""
            yield f"{_MARKS[finding.state]} {escape(f'{finding.part} {finding.name}: {finding.says}{mend}')}"
