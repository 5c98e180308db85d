"""`promptembedder info MODEL`: describe a saved model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptembedder.cli.console import Report
from promptembedder.cli.options import ConfigOption, JsonOption, given_or_saved
from promptembedder.storage import FORMAT, MANIFEST_NAME, read_manifest

__all__ = ["info"]

_MEANING = {
    "soft_token_entropy": "nats; near 0 no gradient passes through the softmax",
    "instruction_cosine": "between reference instructions; 1: the prompter is a constant",
    "instruction_variance": "of 1, explained by the instruction; 0: the prompter is a constant",
}


def info(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    diagnose: Annotated[
        bool,
        typer.Option("--diagnose", help="Load the model and measure how far the instruction decides its soft tokens."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a saved model: backbones, sizes, compiled instructions, provenance. Loads no weights by default.

    Example: promptembedder info runs/mine

    Example: promptembedder info runs/mine --diagnose
    """
    report = Report(as_json)
    manifest = read_manifest(model)
    sizes = {name: (model / name).stat().st_size for name in [*manifest.files, MANIFEST_NAME]}
    content: dict[str, Any] = {
        "model": str(model),
        "format": FORMAT,
        "backbones": manifest.backbones,
        "config": manifest.config,
        "instructions": manifest.instructions,
        "prompts": {role: given_or_saved(None, role, model) for role in ("query", "document")},
        "readers": manifest.readers,
        "bytes": sizes,
        "total_bytes": sum(sizes.values()),
        "provenance": manifest.provenance,
    }
    if diagnose:
        from promptembedder.model import PromptEmbedder

        content["diagnostics"] = PromptEmbedder.from_pretrained(str(model)).encoder.diagnose()
    report.print(_table(content))
    report.result(content)


def _backbone(backbone: dict[str, Any]) -> str:
    return f"{escape(backbone['source'])}, {backbone['layers']} layers, {backbone['dtype']}" + (
        f", {backbone['quantization']}" if backbone.get("quantization") else ""
    )


def _table(content: dict[str, Any]) -> Table:
    table = Table(title=escape(content["model"]), show_header=False, title_justify="left")
    config = content["config"]
    for role, backbone in content["backbones"].items():
        table.add_row(role, _backbone(backbone))
        table.add_row("", backbone["fingerprint"])
    for other in content["readers"]:
        table.add_row("also runs on", _backbone(other["backbone"]))
        table.add_row("", other["backbone"]["fingerprint"])
    table.add_row("soft tokens", f"{config['num_soft_tokens']}, {config['placement']}, pooling {config['pooling']}")
    if config.get("early_exit_fraction", 1) != 1:
        table.add_row("early exit", escape(f"{config['early_exit_fraction']} of the reader's layers"))
    table.add_row("trained", f"prompter {config['prompter']['tuning']}, alignment {config['alignment']['kind']}")
    default = config.get("default_instruction", "")
    for role, prompt in content["prompts"].items():
        table.add_row(f"{role} instruction", escape(prompt or default))
    table.add_row("compiled", escape("\n".join(content["instructions"])) or "none")
    table.add_row("size", f"{content['total_bytes'] / 1e6:.1f} MB, no backbone weights")
    table.add_row("trained with", ", ".join(f"{name} {value}" for name, value in content["provenance"].items()))
    for name, value in content.get("diagnostics", {}).items():
        table.add_row(name.replace("_", " "), f"{value:.3f} {_MEANING.get(name, '')}".strip())
    return table
