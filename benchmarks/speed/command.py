"""`python -m benchmarks speed`: encoding against the bare LLM, sentence-transformers and the machine's own rates."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptembedder import extras
from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, parse_ints

__all__ = ["speed"]


def speed(
    reader: Annotated[str, typer.Option(help="The frozen LLM.")] = "smollm2-135m",
    prompter: Annotated[
        str | None, typer.Option(help="By default SmolLM2-135M; random: too where the reader is.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a text, separated by commas.")] = "16,64,128,512,2048",
    length: Annotated[int, typer.Option(help="Tokens of a text where other things are compared.")] = 128,
    texts: Annotated[str, typer.Option(help="Numbers of texts, separated by commas.")] = "1,8,32",
    instructions: Annotated[str, typer.Option(help="Numbers of instructions, separated by commas.")] = "1,2,4,8,16",
    soft_tokens: Annotated[str, typer.Option(help="Numbers of soft tokens, separated by commas.")] = "1,5,10,20",
    batch: Annotated[int, typer.Option(help="Pairs of a training step.")] = 24,
    tokens: Annotated[int, typer.Option(help="Of all texts of a case, about.")] = 2048,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the reader: auto, float32, bfloat16.")] = "auto",
    repeats: Annotated[int, typer.Option(help="Times each way is timed.")] = 5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("benchmarks/results"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure anew what the folder holds.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure encoding speed against the bare frozen LLM and sentence-transformers, by length, texts and instructions.

    If the command was interrupted, run it again to resume.

    Example: python -m benchmarks speed --lengths 32,128
    """
    report = Report(as_json)
    with one_line_errors():
        extras.require("psutil", extra="bench")
        import torch

        from benchmarks.speed.benchmark import SpeedConfig, run_speed, slowest_profile
        from benchmarks.speed.report import speed_markdown, write_speed

        bench_config = SpeedConfig(
            reader=reader,
            prompter=prompter,
            lengths=parse_ints("lengths", lengths),
            length=length,
            texts=parse_ints("texts", texts),
            instructions=parse_ints("instructions", instructions),
            soft_tokens=parse_ints("soft_tokens", soft_tokens),
            batch=batch,
            tokens=tokens,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=dtype,
            repeats=repeats,
        )
        with err.status("") as status:
            content = run_speed(
                bench_config, output, overwrite=overwrite, on_case=lambda doing: status.update(escape(doing))
            )
            status.update("profiling the slowest case")
            profile = slowest_profile(bench_config, content["rows"])
        files = write_speed(content, profile, output)
    report.page(speed_markdown(content))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})
