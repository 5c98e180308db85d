"""A configuration is refused at the door, with the value found and the mend."""

from typing import Any

import pytest

from promptembedder import ModelConfig, PrompterConfig
from promptembedder.errors import ConfigError
from promptembedder.nn import AlignmentConfig, RelaxationConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_soft_tokens": 0}, "num_soft_tokens must be at least 1, got 0. Try 5"),
        ({"text_weight": -0.5}, "text_weight must not be negative, got -0.5. Try 1"),
        ({"text_layers": 0}, "text_layers must be at least 1, got 0"),
        ({"placement": "prefix", "deep_every": 0}, "text_weight needs placement 'suffix'"),
        ({"max_seq_length": 0}, "max_seq_length must be at least 1, got 0. Try 512"),
        ({"placement": "infix"}, "unknown placement 'infix'. Use one of: suffix, prefix"),
        ({"conditioning": "text"}, "unknown conditioning 'text'. Use one of: instruction, instruction_and_text"),
        ({"pooling": "max"}, "unknown pooling 'max'. Use one of: mean, last"),
        ({"default_instruction": " \n"}, "default_instruction is empty"),
        (
            {"alignment": AlignmentConfig(kind="vocabulary"), "relaxation": RelaxationConfig(kind="hidden")},
            "alignment 'vocabulary' needs vocabulary weights, relaxation 'hidden' has none. Use linear",
        ),
    ],
)
def test_a_model_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "all"}, "unknown prompter.tuning 'all'. Use one of: lora, full, frozen"),
        ({"lora_rank": 0}, "prompter.lora_rank must be at least 1, got 0. Try 16"),
        ({"template": "Task: {text}"}, r"prompter.template must hold \{instruction\}, got 'Task: \{text\}'"),
    ],
)
def test_a_prompter_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrompterConfig(**settings)


def test_a_bad_setting_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_soft_tokens"):
        ModelConfig(num_soft_tokens=-1)
