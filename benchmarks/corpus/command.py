"""`python -m benchmarks corpus`: overhead and fault tolerance of embedding a corpus."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptembedder import extras
from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, parse_ints

__all__ = ["corpus"]


def corpus(
    rows: Annotated[str, typer.Option(help="Sizes of the corpora, separated by commas; blank: none.")] = (
        "10000,100000,1000000"
    ),
    workers: Annotated[str, typer.Option(help="Numbers of Ray's workers, separated by commas.")] = "1,2",
    shard_rows: Annotated[int, typer.Option(min=1, help="Of a shard.")] = 1000,
    faults: Annotated[int, typer.Option(min=0, help="Kills and full disks at random moments; disks need root.")] = 20,
    fault_rows: Annotated[int, typer.Option(min=1, help="Rows of their corpus.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of corpora and moments.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for what is made on the way.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed, memory and fault tolerance of `embed` with a tiny model, locally and with Ray.

    Example: python -m benchmarks corpus --rows 10000 --faults 4
    """
    report = Report(as_json)
    with one_line_errors():
        extras.require("psutil", extra="bench")
        extras.require("ray.data", extra="ray")
        from benchmarks.corpus.benchmark import CorpusBenchConfig, run_corpus
        from benchmarks.corpus.report import corpus_markdown, write_corpus

        bench_config = CorpusBenchConfig(
            rows=parse_ints("rows", rows) if rows.strip() else (),
            workers=parse_ints("workers", workers),
            shard_rows=shard_rows,
            faults=faults,
            fault_rows=fault_rows,
            seed=seed,
            work=work,
        )
        with err.status("") as status:
            content = run_corpus(bench_config, on_part=lambda doing: status.update(escape(doing)))
        files = write_corpus(content, output)
    report.page(corpus_markdown(content))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})
