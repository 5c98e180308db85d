"""`python -m benchmarks reliability`: fault injection with kills, full disks, damaged files and hostile texts."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, split_commas

__all__ = ["reliability"]


def reliability(
    only: Annotated[str | None, typer.Option(help="Campaigns, separated by commas; by default all.")] = None,
    full: Annotated[bool, typer.Option("--full", help="As many as the report counts: some three hours.")] = False,
    seed: Annotated[int, typer.Option(help="Of moments, places and texts.")] = 0,
    document: Annotated[
        Path | None, typer.Option(help="Page to write the table into, such as docs/reliability.md.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Inject faults into a tiny model and count those survived. The exit code is 1 if one was not survived.

    Example: python -m benchmarks reliability --only corrupted-folders
    """
    report = Report(as_json)
    with one_line_errors():
        from benchmarks.document import regenerate
        from benchmarks.faults.campaigns import ReliabilityConfig, run_reliability
        from benchmarks.faults.report import reliability_markdown, write_reliability

        bench_config = ReliabilityConfig(full=full, only=() if only is None else tuple(split_commas(only)), seed=seed)
        files: list[Path] = []
        with err.status("") as status:
            rows = run_reliability(
                bench_config,
                on_part=lambda doing: status.update(escape(doing)),
                on_row=lambda row: files.extend(write_reliability([row], output)),  # finished rows survive a kill
            )
        if document is not None:
            regenerate(document, output, {"reliability": reliability_markdown})
            files.append(document)
    files = list(dict.fromkeys(files))
    report.page(reliability_markdown({"campaigns": rows}))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], "campaigns": rows})
    if any(row["survived"] < row["tried"] for row in rows):
        raise typer.Exit(1)
