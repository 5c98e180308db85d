"""`python -m benchmarks steering`: does the instruction decide what a vector means?"""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from benchmarks.options import OutputOption
from promptembedder import extras
from promptembedder.cli.console import Report, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption
from promptembedder.errors import ConfigError, check_choice
from promptembedder.storage import describe_machine, versions

if TYPE_CHECKING:
    from benchmarks.steering.benchmark import SteeringRun

__all__ = ["steering"]


def steering(
    models: Annotated[
        list[str], typer.Argument(help="Saved models, frozen:POOLING:BACKBONE, or sentence-transformers models.")
    ],
    aspects: Annotated[Path | None, typer.Option(help="File of conflict triplets (.json).")] = None,
    questions: Annotated[
        list[Path] | None, typer.Option(help="File of texts with questions and answers. Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Triplets of each attribute, texts of each file.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts per batch.")] = 64,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="One of: whole, constant prompter, soft tokens alone, text states alone. Repeatable."),
    ] = None,
    output: OutputOption = Path("benchmarks/results"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score models under own, other and unseen instructions, a PromptEmbedder also with a constant prompter.

    Example: python -m benchmarks steering runs/steering frozen:mean:smollm2-135m --aspects aspects.json
    """
    report = Report(as_json)
    with one_line_errors():
        if aspects is None and not questions:
            raise ConfigError("steering needs --aspects, --questions or both.")
        extras.require("matplotlib", extra="bench")
        from benchmarks.steering.benchmark import VARIANTS, score_model
        from benchmarks.steering.report import steering_content, write_steering
        from promptembedder.evaluation.aspects import read_aspects, read_questions
        from promptembedder.model import load_encoder

        for one in variant or []:
            check_choice("variant", one, VARIANTS)
        listed = read_aspects(aspects, limit=limit) if aspects else []
        files = {path.name.split(".")[0]: read_questions(path, limit=limit) for path in questions or []}

        runs = [
            run
            for name in models
            for run in score_model(
                load_encoder(name),
                name=name,
                aspects=listed,
                questions=files,
                batch_size=batch_size,
                variants=variant or VARIANTS,
                on_run=partial(_print_run, report),
            )
        ]
        provenance = {
            "commands": [shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])],
            "machine": describe_machine(),
            "versions": versions(),
            "settings": {"aspects": aspects and aspects.name, "questions": list(files), "limit": limit},
        }
        content = steering_content(runs, provenance)
        paths = write_steering(output, content)
    report.print("written: " + ", ".join(escape(str(path)) for path in paths))
    report.result(content)


def _print_run(report: Report, run: "SteeringRun") -> None:
    for kind, means in run.means().items():
        shares = ", ".join(f"{share} {value:.1f}" for share, value in means.items() if value is not None)
        report.print(f"{escape(run.model)}, {run.variant}, {escape(kind)}: {shares}")
    for score in run.questions:
        report.print(f"{escape(run.model)}, {run.variant}, {escape(score.name)}: {score.gain:.1f} % of the way")
