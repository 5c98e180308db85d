"""Checks for export to engines that only map input embeddings to final hidden states."""

from collections.abc import Sequence

from promptembedder.backbone import Backbone, find_source
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder

__all__ = ["check_exportable", "needs_own_backbone", "require_plain_weights", "select_instructions"]

_LOADABLE_BY_NAME = ("hub", "folder")


def check_exportable(encoder: SoftTokenEncoder, *, leave_out_text: bool = False) -> None:
    """Check that an engine without hooks can compute the embedding.

    Args:
        leave_out_text: Export the embedding without text pooling, as with text_pooling_weight 0.

    Raises:
        ConfigError: If the model has deep prompts, early exit or text pooling, its soft tokens depend on the text, or
            the reader is quantised.
    """
    config = encoder.config
    gaps, fixes = [], []
    if config.prompter.depends_on_text:
        gaps.append("prompter.template contains {text}, which generates soft tokens for each text")
        fixes.append("a prompter.template without {text}")
    if config.deep_prompt_interval:
        gaps.append(f"deep_prompt_interval {config.deep_prompt_interval} adds soft tokens at deeper layers")
        fixes.append("deep_prompt_interval: 0")
    if config.early_exit_fraction < 1:
        gaps.append(f"early_exit_fraction {config.early_exit_fraction:g} stops texts before the last layer")
        fixes.append("early_exit_fraction: 1")
    leave_out = ""
    if config.text_pooling_weight and not leave_out_text:
        gaps.append(f"text_pooling_weight {config.text_pooling_weight:g} adds hidden states of a middle layer")
        fixes.append("text_pooling_weight: 0")
        if not config.deep_prompt_interval:
            leave_out = " or --leave-out-text"
    if gaps:
        whole = ", or export the complete model with --format onnx" if not config.prompter.depends_on_text else ""
        raise ConfigError(
            f"an engine that takes input vectors cannot compute this model: {'; '.join(gaps)}. "
            f"Train with {', '.join(fixes)}{leave_out}{whole}."
        )
    require_plain_weights(encoder.reader)


def require_plain_weights(reader: Backbone) -> None:
    """Check that the reader is not quantised.

    Raises:
        ConfigError: If the reader is quantised.
    """
    if reader.identity.quantization is not None:
        raise ConfigError(
            f"the reader is quantised ({reader.identity.quantization}), which no other engine reproduces exactly. "
            "Transfer the model to the same LLM without quantization, then export it."
        )


def needs_own_backbone(encoder: SoftTokenEncoder) -> bool:
    """Return True if no engine could load the reader by its name: GGUF, installed, random or shortened."""
    return (
        encoder.config.reader.layers is not None
        or find_source(encoder.reader.identity.source).kind not in _LOADABLE_BY_NAME
    )


def select_instructions(compiled: Sequence[str], requested: Sequence[str], model: str) -> list[str]:
    """Return the requested compiled instructions without duplicates, or all compiled ones if none is requested.

    Raises:
        ConfigError: If a requested instruction is not compiled, or the model has no compiled instruction.
    """
    wanted = list(dict.fromkeys(clean_text(text).strip() for text in requested)) or list(compiled)
    missing = [text for text in wanted if text not in compiled]
    if missing:
        raise ConfigError(
            f"instruction {missing[0]!r} is not compiled. Run: promptembedder compile {model} --instruction "
            f'"{missing[0]}"'
        )
    if not wanted:
        raise ConfigError(
            f'{model} has no compiled instruction. Run: promptembedder compile {model} --instruction "..." first.'
        )
    return wanted
