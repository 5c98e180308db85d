"""Random backbones: the same each time, and no trace of having been made."""

import logging

import pytest
import torch
from transformers.utils.logging import warning_once

from promptembedder.backbone import BackboneConfig, load_backbone
from promptembedder.backbone.random_models import random_model, random_tokenizer
from promptembedder.errors import BackboneError


def test_a_random_backbone_is_the_same_each_time(family: str) -> None:
    config = BackboneConfig(source=f"random:{family}", dtype="float32")
    torch.manual_seed(1)
    one = load_backbone(config, head=True)
    torch.manual_seed(2)
    other = load_backbone(config, head=True)
    weights = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)
    assert one.identity == other.identity


def test_making_one_leaves_the_global_random_state_alone(family: str) -> None:
    before = torch.get_rng_state()
    load_backbone(BackboneConfig(source=f"random:{family}"), head=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights() -> None:
    one, other = (random_model("tiny-llama", layers=1, dtype=torch.float32, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_families_load_without_a_complaint(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """GPT-2's default special tokens lay outside of the tiny vocabulary, and transformers said so each time."""
    logger = logging.getLogger("transformers")
    warning_once.cache_clear()  # it may have been said before
    logger.addHandler(caplog.handler)
    try:
        load_backbone(BackboneConfig(source=f"random:{family}"), head=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        BackboneError, match=r"no random model is named 'tiny-lama'. Use one of: tiny-llama, tiny-qwen3"
    ):
        load_backbone(BackboneConfig(source="random:tiny-lama"), head=False)


def test_the_random_tokenizer_gives_back_any_text() -> None:
    tokenizer = random_tokenizer()
    text = "grüße\n\t日本 \x00 🙂"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.135),
        ("qwen2.5-0.5b", 0.494),
        ("llama-1b", 1.236),
        ("llama-7b", 6.738),
        ("qwen3-8b", 8.191),
    ],
)
def test_a_real_shape_has_the_real_size_and_is_made_on_the_device_asked_for(name: str, billions: float) -> None:
    """On the way over the CPU a 7B model would take 13 GB there, and minutes."""
    with torch.device("meta"):
        model = random_model(name, layers=None, dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("meta", torch.bfloat16)}
