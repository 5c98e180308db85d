"""What of a model an engine can compute that only takes input vectors and hands out final states."""

from collections.abc import Sequence

from promptembedder.backbone import Backbone, find_source
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError
from promptembedder.method import SoftTokenEncoder

__all__ = ["chosen_instructions", "needs_own_backbone", "require_plain_weights", "require_stock"]

_FINDABLE = ("hub", "folder")


def require_stock(encoder: SoftTokenEncoder, *, leave_out_text: bool = False) -> None:
    """Refuse a model of whose vector a stock engine lacks a part.

    Args:
        leave_out_text: Export the vector without the text's own states: that of the same model with text_weight 0.

    Raises:
        ConfigError: Soft tokens enter deeper layers or depend on the text, texts leave the reader early, their own
            states are added, or the reader is quantised.
    """
    settings = encoder.settings
    gaps, mends = [], []
    if settings.conditioning != "instruction":
        gaps.append(f"conditioning {settings.conditioning!r} makes soft tokens anew for each text")
        mends.append("conditioning: instruction")
    if settings.deep_every:
        gaps.append(f"deep_every {settings.deep_every} puts soft tokens into deeper layers, too")
        mends.append("deep_every: 0")
    if settings.exit_depth < 1:
        gaps.append(f"exit_depth {settings.exit_depth:g} ends the reading of a text early")
        mends.append("exit_depth: 1")
    leave_out = ""
    if settings.text_weight and not leave_out_text:
        gaps.append(f"text_weight {settings.text_weight:g} adds states from inside the reader")
        mends.append("text_weight: 0")
        if not settings.deep_every:
            leave_out = " or --leave-out-text"
    if gaps:
        whole = ", or export all of it with --format onnx" if settings.conditioning == "instruction" else ""
        raise ConfigError(
            f"an engine that takes input vectors cannot compute this model: {'; '.join(gaps)}. "
            f"Train with {', '.join(mends)}{leave_out}{whole}."
        )
    require_plain_weights(encoder.reader)


def require_plain_weights(reader: Backbone) -> None:
    """Refuse a quantised reader.

    Raises:
        ConfigError: Its weights are quantised.
    """
    if reader.ref.quantization is not None:
        raise ConfigError(
            f"the reader is quantised ({reader.ref.quantization}), which no other engine repeats exactly. "
            "Move the model to the same LLM without quantization, then export it."
        )


def needs_own_backbone(encoder: SoftTokenEncoder) -> bool:
    """Whether no engine could find this reader under its name: GGUF, installed, random, or cut."""
    return encoder.settings.reader.layers is not None or find_source(encoder.reader.ref.source).kind not in _FINDABLE


def chosen_instructions(compiled: Sequence[str], asked: Sequence[str], model: str) -> list[str]:
    """The compiled instructions that were asked for, each once; all of them if none was.

    Raises:
        ConfigError: One is not compiled, or there is none at all.
    """
    wanted = list(dict.fromkeys(clean_text(text).strip() for text in asked)) or list(compiled)
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
