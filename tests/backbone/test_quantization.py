"""Laws of a frozen LLM in fewer bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from promptembedder import PromptEmbedder
from promptembedder.backbone import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import BackboneError, ConfigError, ModelFormatError
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.model import BaselineConfig, load_encoder
from promptembedder.training import OptimConfig, Recipe, RunConfig

TEXTS = ["a text", "another text, which is longer than the first one", ""]
NewBackbone = Callable[..., Backbone]
NewModel = Callable[..., PromptEmbedder]


def error_bound(weight: torch.Tensor) -> torch.Tensor:
    """Half a step of 1/127 of each row's largest number, and a little for float rounding."""
    return 0.505 * weight.abs().amax(dim=1, keepdim=True) / 127


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-phi3"])
def test_each_weight_is_as_near_as_its_rounding(new_backbone: NewBackbone, name: str) -> None:
    exact, small = new_backbone(name), new_backbone(name, quantization="int8")
    linear = {name: module for name, module in exact.decoder.named_modules() if isinstance(module, nn.Linear)}
    pairs = [(linear[name].weight, module.weight) for name, module in small.decoder.named_modules() if name in linear]
    assert len(pairs) >= 4 * exact.identity.layers
    for before, after in pairs:
        assert bool(((after.dequantize() - before).abs() <= error_bound(before)).all())
    assert torch.equal(small.input_embeddings, exact.input_embeddings)
    assert (small.identity.quantization, exact.identity.quantization) == ("int8", None)
    assert small.identity.fingerprint == exact.identity.fingerprint


def test_vectors_and_gradients_are_near_those_of_the_whole_weights(new_model: NewModel, tmp_path: Path) -> None:
    new_model("tiny-qwen3").save(str(tmp_path))
    vectors, gradients = [], []
    for quantization in (None, "int8"):
        model = PromptEmbedder.from_pretrained(tmp_path, quantization=quantization, device="cpu")
        vectors.append(model.encode(TEXTS, prompt="find"))
        model.train()
        features = model.preprocess(TEXTS[:2], prompt="find")
        model(features)["sentence_embedding"].sum(dim=0).square().sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.encoder.trained_weights()]))
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.98


def test_a_saved_model_opens_either_way_and_is_saved_with_what_it_was_trained_on(
    new_model: NewModel, tmp_path: Path
) -> None:
    model = new_model("tiny-llama")
    model.save(str(tmp_path / "whole"))
    small = PromptEmbedder.from_pretrained(tmp_path / "whole", quantization="int8", device="cpu")
    assert small.encoder.reader.identity.quantization == "int8"
    near = (small.encode(TEXTS, prompt="find") * model.encode(TEXTS, prompt="find")).sum(axis=1)
    assert 0.999 < near.min() < 1 - 1e-9
    small.save(str(tmp_path / "small"))
    again = load_encoder(str(tmp_path / "small"), device="cpu").model
    np.testing.assert_allclose(again.encode(TEXTS, prompt="find"), small.encode(TEXTS, prompt="find"), atol=1e-6)


def test_what_cannot_be_quantised_is_refused(new_backbone: NewBackbone) -> None:
    with pytest.raises(ConfigError, match="unknown quantization 'int3'. Use int8, or leave it out"):
        BackboneConfig(quantization="int3")
    with pytest.raises(ConfigError, match="prompter.backbone.quantization is for frozen weights only"):
        PrompterConfig(backbone=BackboneConfig(quantization="int8"))
    with pytest.raises(BackboneError, match=r"gpt2 has no torch.nn.Linear layers, so int8 does nothing"):
        load_backbone(BackboneConfig(source="random:tiny-gpt2", dtype="float32", quantization="int8"), head=False)
    with pytest.raises(ModelFormatError, match="its reader cannot be quantised here"):
        load_encoder("frozen:mean:random:tiny-llama", quantization="int8")


def test_baselines_that_train_the_reader_do_not_take_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization needs a frozen reader"):
        Recipe(
            model=ModelConfig(reader=BackboneConfig(quantization="int8")),
            baseline=BaselineConfig(kind="lora"),
            optim=OptimConfig(),
            run=RunConfig(output=str(tmp_path)),
        )
