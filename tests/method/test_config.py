"""Laws of the configuration: invalid values raise a ConfigError that gives the value and how to fix it."""

from typing import Any

import pytest

from promptembedder import ModelConfig, PrompterConfig
from promptembedder.errors import ConfigError
from promptembedder.method import AlignmentConfig, RelaxationConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_soft_tokens": 0}, "num_soft_tokens must be at least 1, got 0. Try 5"),
        ({"text_pooling_weight": -0.5}, "text_pooling_weight must not be negative, got -0.5. Try 1"),
        ({"text_pooling_layer": 0}, "text_pooling_layer must be at least 1, got 0"),
        ({"placement": "prefix", "deep_prompt_interval": 0}, "text_pooling_weight needs placement 'suffix'"),
        ({"max_seq_length": 0}, "max_seq_length must be at least 1, got 0. Try 512"),
        ({"placement": "infix"}, "unknown placement 'infix'. Use one of: suffix, prefix"),
        ({"pooling": "max"}, "unknown pooling 'max'. Use one of: mean, last"),
        ({"default_instruction": " \n"}, "default_instruction is empty"),
        (
            {"alignment": AlignmentConfig(kind="vocabulary"), "relaxation": RelaxationConfig(kind="hidden")},
            "alignment 'vocabulary' needs vocabulary weights, relaxation 'hidden' has none. Use linear",
        ),
    ],
)
def test_invalid_model_config_raises_config_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": "all"}, "unknown prompter.tuning 'all'. Use one of: lora, full, frozen"),
        ({"lora_rank": 0}, "prompter.lora_rank must be at least 1, got 0. Try 16"),
        ({"template": "Task: {text}"}, r"prompter.template must contain \{instruction\}, got 'Task: \{text\}'"),
        ({"template": "{text} {instruction} {text}"}, r"prompter.template must contain \{text\} at most once"),
    ],
)
def test_invalid_prompter_config_raises_config_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrompterConfig(**changes)


def test_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_soft_tokens"):
        ModelConfig(num_soft_tokens=-1)


@pytest.mark.parametrize("placement", ["suffix", "prefix"])
def test_paper_config_is_the_plain_method(placement: str) -> None:
    config = ModelConfig.paper(placement=placement, num_soft_tokens=3, prompter=PrompterConfig(lora_rank=4))
    assert (config.placement, config.num_soft_tokens, config.prompter.lora_rank) == (placement, 3, 4)
    assert (config.deep_prompt_interval, config.text_pooling_weight, config.prompter.init_text) == (0, 0, "")
