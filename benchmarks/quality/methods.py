"""Methods that the quality benchmark compares, each defined by changes to one recipe."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from promptembedder.errors import ConfigError

__all__ = ["METHODS", "Method", "chosen_methods"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Compared method.

    Attributes:
        changes: Changes to the benchmark's recipe. All other values stay equal.
        frozen: Name WAY of an untrained method that `load_encoder` opens as frozen:WAY:READER.
        untrained: If True, use the recipe's model as it is before the first step.
        fallbacks: Other fallbacks for unseen instructions that the same trained model is scored with, by their name in
            the results.
    """

    about: str
    changes: dict[str, Any] = field(default_factory=dict)
    frozen: str | None = None
    untrained: bool = False
    fallbacks: dict[str, str] = field(default_factory=dict)


def _lora(rate: float, **baseline: Any) -> dict[str, Any]:
    return {"baseline": {"kind": "lora", **baseline}, "optim": {"learning_rate": rate}}


METHODS = {
    "promptembedder": Method(about="generated soft tokens after the text, at every layer, vocabulary softmax"),
    "promptembedder-input": Method(
        about="generated soft tokens at the reader's input alone", changes={"model": {"deep_prompt_interval": 0}}
    ),
    "promptembedder-hidden": Method(
        about="projected hidden states instead of the softmax", changes={"model": {"relaxation": {"kind": "hidden"}}}
    ),
    "promptembedder-prefix": Method(
        about="generated soft tokens before the text",
        changes={"model": {"placement": "prefix", "deep_prompt_interval": 0, "text_pooling_weight": 0.0}},
    ),
    "promptembedder-no-text": Method(
        about="generated soft tokens alone, without the text's own states",
        changes={"model": {"text_pooling_weight": 0.0}},
    ),
    "promptembedder-centred": Method(
        about="with the text's own states centred, not whitened", changes={"model": {"whitening_rank": 0}}
    ),
    "promptembedder-stepwise": Method(
        about="with the loss after one soft token, two, and so on", changes={"loss": {"stepwise": True}}
    ),
    "promptembedder-21-layers": Method(
        about="with the first 21 layers of the reader alone, 70 % of SmolLM2's",
        changes={"model": {"reader": {"layers": 21}, "text_pooling_layer": 9}},
    ),
    "promptembedder-exit-0.7": Method(
        about="trained with texts that leave the reader after 0.7 of its layers",
        changes={"model": {"early_exit_fraction": 0.7}},
    ),
    "static": Method(
        about="free soft tokens for each task; unseen instructions get those of the nearest seen one",
        changes={"baseline": {"kind": "static"}, "model": {"deep_prompt_interval": 0, "text_pooling_weight": 0.0}},
        fallbacks={"static-default": "default"},
    ),
    "static-shared": Method(
        about="one set of free soft tokens for everything",
        changes={
            "baseline": {"kind": "static", "fallback": "shared"},
            "model": {"deep_prompt_interval": 0, "text_pooling_weight": 0.0},
        },
    ),
    "static-shared-deep": Method(
        about="one set of free soft tokens for everything, at every layer of the reader",
        changes={"baseline": {"kind": "static", "fallback": "shared"}, "model": {"deep_prompt_interval": 1}},
    ),
    "static-deep": Method(
        about="free soft tokens for each task at every layer of the reader",
        changes={"baseline": {"kind": "static"}, "model": {"deep_prompt_interval": 1}},
        fallbacks={"static-deep-default": "default"},
    ),
    "lora-1e-4": Method(about="LoRA, rank 16, all matrices, learning rate 1e-4", changes=_lora(1e-4)),
    "lora-3e-4": Method(about="LoRA, rank 16, all matrices, learning rate 3e-4", changes=_lora(3e-4)),
    "lora-1e-3": Method(about="LoRA, rank 16, all matrices, learning rate 1e-3", changes=_lora(1e-3)),
    "lora-3e-3": Method(about="LoRA, rank 16, all matrices, learning rate 3e-3", changes=_lora(3e-3)),
    "lora-bidirectional": Method(
        about="LoRA at 1e-3 with attention in both directions", changes=_lora(1e-3, attention="bidirectional")
    ),
    "promptembedder-untrained": Method(about="the method before its first training step", untrained=True),
    "frozen-whitened": Method(
        about="mean of the text's frozen states after 30 % of the layers, whitened: what the method adds to a summary",
        changes={"model": {"text_pooling_weight": 1e6}},  # weight beside which the summary is negligible
        untrained=True,
    ),
    "frozen-mean": Method(about="frozen reader, mean of the text's states", frozen="mean"),
    "frozen-last": Method(about="frozen reader, last state", frozen="last"),
    "frozen-prompteol": Method(about='frozen reader, last state after "means in one word:"', frozen="prompteol"),
}


def chosen_methods(names: Sequence[str]) -> dict[str, Method]:
    """Return the methods of these names, in the same order.

    Raises:
        ConfigError: If there is no such method.
    """
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"unknown method {name!r}.{hint} Known: {', '.join(METHODS)}.")
    return {name: METHODS[name] for name in names}
