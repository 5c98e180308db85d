"""`python -m benchmarks serve`: requests a second against other servers, and a long overload."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptembedder import extras
from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, parse_ints

__all__ = ["serve"]


def serve(
    reader: Annotated[str, typer.Option(help="The frozen LLM.")] = "smollm2-135m",
    clients: Annotated[int, typer.Option(help="That send one request after the other.")] = 16,
    request_texts: Annotated[
        str, typer.Option(help="Numbers of texts of a request, where lengths are mixed, separated by commas.")
    ] = "1,8",
    seconds: Annotated[float, typer.Option(help="Of each round of a server.")] = 30.0,
    rounds: Annotated[int, typer.Option(help="The servers take turns.")] = 3,
    length: Annotated[int, typer.Option(help="Tokens of a text where instructions are compared.")] = 128,
    texts: Annotated[int, typer.Option(help="Of a request there.")] = 16,
    soak_seconds: Annotated[float, typer.Option(help="Of the overload; 0 leaves it out.")] = 600.0,
    soak_waiting: Annotated[int, typer.Option(help="Vectors that may wait in it.")] = 32,
    overload: Annotated[float, typer.Option(help="Its rate, in capacities of the server.")] = 2.0,
    dtype: Annotated[str, typer.Option(help="Of the reader: auto, float32, bfloat16.")] = "auto",
    infinity: Annotated[
        str | None, typer.Option(help="Path of the program infinity_emb, from an environment of its own.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure serving speed against a plain server and infinity, the overhead of a request, and a verified overload.

    Requests are sent only to servers that this command starts on this machine.

    Example: python -m benchmarks serve --seconds 5 --clients 8
    """
    report = Report(as_json)
    with one_line_errors():
        extras.require("psutil", extra="bench")
        extras.require("fastapi", extra="serve")
        from benchmarks.serving.benchmark import ServingConfig, run_serving
        from benchmarks.serving.report import serving_markdown, write_serving

        bench_config = ServingConfig(
            reader=reader,
            clients=clients,
            request_texts=parse_ints("request-texts", request_texts),
            seconds=seconds,
            rounds=rounds,
            length=length,
            texts=texts,
            soak_seconds=soak_seconds,
            soak_waiting=soak_waiting,
            overload=overload,
            dtype=dtype,
            infinity=infinity,
        )
        with err.status("") as status:
            content = run_serving(bench_config, on_part=lambda doing: status.update(escape(doing)))
        files = write_serving(content, output)
    report.page(serving_markdown(content))
    report.print(f"written: {escape(', '.join(map(str, files)))}")
    report.result({"files": [str(path) for path in files], **content})
