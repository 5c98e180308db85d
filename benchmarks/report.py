"""`python -m benchmarks report`: regenerate the tables of a document from the JSON of the results."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption

__all__ = ["report"]


def report(
    document: Annotated[Path, typer.Argument(help="Markdown file with <!-- quality --> ... <!-- end quality -->.")],
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Insert the results into a document between its markers. The rest of the document does not change.

    Example: python -m benchmarks report docs/results.md
    """
    report = Report(as_json)
    with one_line_errors():
        from benchmarks.corpus.report import corpus_markdown
        from benchmarks.document import regenerate
        from benchmarks.efficiency.results import efficiency_markdown
        from benchmarks.faults.report import reliability_markdown
        from benchmarks.quality.report import quality_markdown
        from benchmarks.serving.report import serving_markdown
        from benchmarks.speed.report import speed_markdown
        from benchmarks.steering.report import steering_markdown
        from benchmarks.transfer.report import move_markdown

        pages = {"quality": quality_markdown, "efficiency": efficiency_markdown, "move": move_markdown}
        pages |= {"speed": speed_markdown, "serve": serving_markdown, "corpus": corpus_markdown}
        pages |= {"reliability": reliability_markdown, "steering": steering_markdown}
        done = regenerate(document, results, pages)
    report.print(f"{escape(str(document))}: wrote {', '.join(done)}")
    report.result({"document": str(document), "written": done})
