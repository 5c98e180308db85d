"""`promptembedder compile MODEL --instruction TEXT`: soft tokens stored, so that the prompter can stay at home."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptembedder.cli.console import Report, importing, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption
from promptembedder.errors import ConfigError, DataError
from promptembedder.storage import Manifest, read_manifest, seal_folder, whole_folder, write_manifest

if TYPE_CHECKING:
    from promptembedder.method import Parts
    from promptembedder.model import SelfTest

__all__ = ["compile_"]


def compile_(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    instruction: Annotated[
        list[str],
        # an environment variable would be split at spaces
        typer.Option(help="Instruction to compile; give several for several.", allow_from_autoenv=False),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New folder; by default MODEL itself.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store the soft tokens of instructions in a saved model: those are then served without the prompter.

    Example: promptembedder compile runs/mine --instruction "Represent the topic"
    """
    report = Report(as_json)
    with one_line_errors():
        manifest = read_manifest(model)
        target = model if output is None else output
        if target.exists() and not target.samefile(model):
            raise DataError(f"{target} exists. Name a new folder, or leave it out to add to {model} itself.")
        with importing():  # seconds
            from promptembedder.data import clean_text
            from promptembedder.model import PromptEmbedder

        asked = [clean_text(text).strip() for text in instruction]
        if not all(asked):
            raise ConfigError("an instruction is blank. Say in words what the vectors are for.")
        start = time.perf_counter()
        embedder = PromptEmbedder.from_pretrained(model)
        embedder.compile_instructions(asked)
        parts = embedder.encoder.parts()
        _save(parts, embedder.encoder.self_test(), model, target, manifest)
        seconds = time.perf_counter() - start
    size = sum(tokens.numel() * tokens.element_size() for tokens in parts.compiled.values())
    instructions = list(parts.compiled)
    words = [f"compiled in {escape(str(target))}, {size} bytes:"]
    report.say("\n".join([*words, *(f"  {escape(text)}" for text in instructions)]))
    report.result({"model": str(target), "instructions": instructions, "bytes": size, "seconds": seconds})


def _save(parts: "Parts", self_test: "SelfTest | None", model: Path, target: Path, manifest: Manifest) -> None:
    """Write the parts to `target`, with what else lies beside them in `model`: settings, model card, provenance."""
    from promptembedder.model import save_parts

    with whole_folder(target) as scratch:
        save_parts(scratch, parts, self_test=self_test)
        for path in model.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and not (scratch / path.name).exists():
                shutil.copy(path, scratch / path.name)
        seal_folder(scratch)
        made = read_manifest(scratch)
        # the versions that trained the weights, not those that compiled
        write_manifest(scratch, dataclasses.replace(made, provenance=manifest.provenance))
