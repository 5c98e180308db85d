"""Names of format 3 and their names in format 4: settings of models and recipes, and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "REMOVED_SETTINGS",
    "RENAMED_SETTINGS",
    "RemovedSetting",
    "migrate_conditioning",
    "migrate_settings",
    "migrate_tensor_name",
]

RENAMED_SETTINGS = {
    "anchor": "init_text",
    "anchor_learning_rate": "soft_prompt_learning_rate",
    "deep_every": "deep_prompt_interval",
    "deep_rank": "deep_prompt_rank",
    "exit_depth": "early_exit_fraction",
    "health": "monitor",
    "held_out_wordings": "held_out_variants",
    "text_layers": "text_pooling_layer",
    "text_rank": "whitening_rank",
    "text_states": "text_cache",
    "text_weight": "text_pooling_weight",
    "wordings": "instruction_variants",
}


@dataclass(frozen=True)
class RemovedSetting:
    """Setting that no longer exists.

    Attributes:
        dropped: Value that is ignored, because it means what every model does now.
        reason: What replaces any other value, for the error message.
    """

    dropped: Any
    reason: str


# by the configuration class and the name of the field
REMOVED_SETTINGS = {
    ("ModelConfig", "conditioning"): RemovedSetting(
        "instruction", "For soft tokens that depend on the text, write {text} into model.prompter.template."
    ),
    ("ModelConfig", "head"): RemovedSetting(False, "The linear head had no measured gain; train a model without it."),
}

_RENAMED_TENSOR_PARTS = {"readout": "text_pooling", "anchor_delta": "soft_prompt_delta", "log_gate": "log_scale"}


def migrate_settings(settings: Any) -> Any:
    """Return nested settings of format 3 under their names of format 4; other values are returned as they are."""
    if isinstance(settings, Mapping):
        return {RENAMED_SETTINGS.get(key, key): migrate_settings(value) for key, value in settings.items()}
    return settings


def migrate_conditioning(config: Mapping[str, Any], *, template: str) -> dict[str, Any]:
    """Return a model's saved configuration without `conditioning`, with the template that has the same prompts.

    Args:
        template: Template of the prompter if the configuration has none.
    """
    migrated = dict(config)
    if migrated.pop("conditioning", None) == "instruction_and_text":
        prompter = migrated.get("prompter")
        prompter = dict(prompter) if isinstance(prompter, Mapping) else {}
        migrated["prompter"] = {**prompter, "template": "{text}\n\n" + str(prompter.get("template", template))}
    return migrated


def migrate_tensor_name(name: str) -> str:
    """Return the name of a tensor in format 4."""
    return ".".join(_RENAMED_TENSOR_PARTS.get(part, part) for part in name.split("."))
