"""The models whose steps are compared are those that the library itself builds."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.efficiency.methods import METHODS, StepModel, default_prompter, prepare_backbone
from promptembedder.backbone import BackboneConfig
from promptembedder.errors import BackboneError


@pytest.mark.parametrize("method", list(METHODS))
def test_the_model_is_the_one_that_the_library_builds(method: str, step_model: Callable[..., StepModel]) -> None:
    model = step_model(method).build()
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    settings, baseline = model.text_encoder.config, METHODS[method].baseline
    assert settings.reader == BackboneConfig(source="random:tiny-llama", dtype="float32")
    if baseline is None:
        assert settings.deep_prompt_interval == METHODS[method].deep_prompt_interval
        assert settings.prompter.backbone.dtype == "float32"
        assert (model.text_encoder.prompter is None) == METHODS[method].moved
    else:
        assert model.text_encoder.baseline.kind == baseline.kind
        assert model.text_encoder.baseline.gradient_checkpointing == (method == "lora-checkpointing")


def test_a_random_reader_gets_a_random_prompter() -> None:
    assert default_prompter("random:tiny-qwen3") == "random:tiny-qwen3"
    assert default_prompter("random:qwen3-8b") == "random:smollm2-135m"
    assert default_prompter("gemma3-270m") == "smollm2-135m"


def test_a_backbone_is_checked_by_name() -> None:
    prepare_backbone("random:llama-7b")
    with pytest.raises(BackboneError, match="no random model is named 'lama'"):
        prepare_backbone("random:lama")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", list(METHODS))
def test_on_a_gpu_everything_is_made_and_measured_there(method: str) -> None:
    from benchmarks.efficiency.step import StepMeter

    names = {"reader": "random:tiny-llama", "prompter": "random:tiny-llama"}
    model = StepModel(method=method, device="cuda", dtype="bfloat16", **names)
    assert {weight.device.type for weight in model.build().parameters()} == {"cuda"}
    meter = StepMeter(model, limit_bytes=4 << 30)
    memory = meter.measure(16, 4)
    assert memory.source == "cuda allocator"
    assert memory.peak_bytes > memory.baseline_bytes >= memory.weights_bytes
    assert meter.timed(16, 4).seconds > 0
