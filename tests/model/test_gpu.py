"""What a GPU computes is what a CPU does, and what it has no memory for at once it reads in parts."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from promptembedder import PromptEmbedder
from promptembedder.backbone import supports_packing

NewModel = Callable[..., PromptEmbedder]
INSTRUCTIONS = ["find the same thing", "tell the mood"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=-1)


@pytest.mark.parametrize("depth", [1.0, 0.34])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.99)])
def test_vectors_are_those_of_the_cpu(
    family: str, depth: float, dtype: torch.dtype, least: float, new_model: NewModel, texts: list[str]
) -> None:
    model = new_model(family, early_exit_fraction=depth)
    expected = model.encode_instructions(texts, INSTRUCTIONS)
    model = model.to("cuda")
    model.encoder.reader.decoder.to(dtype)
    assert cosines(model.encode_instructions(texts, INSTRUCTIONS), expected).min() > least
    assert cosines(model.encode(texts, prompt=INSTRUCTIONS[0]), expected[0]).min() > least


def test_texts_are_packed_in_half_precision_and_are_as_they_are_alone(
    family: str, new_model: NewModel, texts: list[str]
) -> None:
    """By FlashAttention; Gemma's sliding window is written out."""
    model = new_model(family).to("cuda")
    model.encoder.reader.decoder.to(torch.bfloat16)
    assert supports_packing(model.encoder.reader.decoder)
    alone = np.concatenate([model.encode([text], prompt=INSTRUCTIONS[0]) for text in texts])
    assert cosines(model.encode(texts, prompt=INSTRUCTIONS[0]), alone).min() > 0.999
    model.encoder.reader.decoder.to(torch.float32)
    assert not supports_packing(model.encoder.reader.decoder)


def test_int8_weights_are_near_the_whole_ones(new_model: NewModel, texts: list[str], tmp_path: Path) -> None:
    new_model("tiny-qwen3").save(str(tmp_path))
    whole, small = (
        PromptEmbedder.from_pretrained(tmp_path, quantization=kind, device="cuda").encode(texts, prompt=INSTRUCTIONS[0])
        for kind in (None, "int8")
    )
    assert cosines(whole, small).min() > 0.999


def test_what_there_is_no_memory_for_is_read_in_parts(new_model: NewModel, caplog: pytest.LogCaptureFixture) -> None:
    model = new_model("tiny-llama").to("cuda")
    texts = [f"text {number} " + "word " * 60 for number in range(20_000)]
    expected = model.encode(texts[:50], prompt=INSTRUCTIONS[0])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    model.max_batch_tokens = 4_000_000
    try:
        with caplog.at_level(logging.WARNING):
            found = model.encode_instructions(texts, INSTRUCTIONS[:1])[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "the GPU has no memory for" in caplog.text
    assert cosines(found[:50], expected).min() > 0.9999
