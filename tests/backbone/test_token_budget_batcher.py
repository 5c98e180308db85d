"""Laws of going through texts in batches."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from promptembedder import PromptEmbedder
from promptembedder.backbone import TokenBudgetBatcher
from promptembedder.errors import ConfigError

TEXTS = [(1,) * length for length in (3, 40, 3, 17, 40, 0, 5, 16)]
INSTRUCTIONS = ["find the answer", "tell the mood"]


def test_every_place_is_read_once_and_everything_is_counted() -> None:
    reading = TokenBudgetBatcher()
    reading.max_batch_tokens = 45
    batches, results = reading.map_batches(TEXTS, lambda places: sum(len(TEXTS[place]) for place in places))
    assert sorted(place for batch in batches for place in batch) == list(range(len(TEXTS)))
    widths = [max(len(TEXTS[place]) for place in batch) for batch in batches]
    assert max(len(batch) * width for batch, width in zip(batches, widths, strict=True)) <= 45
    counts = reading.counts
    assert (counts.texts, counts.tokens, sum(results)) == (8, 124, 124)
    assert counts.tokens + counts.padding == sum(
        len(batch) * width for batch, width in zip(batches, widths, strict=True)
    )
    assert counts.padding_share == counts.padding / (124 + counts.padding)


@pytest.mark.parametrize("room", [40, 55, 80, 160])
def test_where_memory_ends_half_is_read_and_nothing_is_lost_or_counted_twice(
    room: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The device's own error, raised here by hand: no machine without a GPU raises it."""
    reading, seen = TokenBudgetBatcher(), []

    def read(places: list[int]) -> int:
        if len(places) * max(len(TEXTS[place]) for place in places) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.extend(places)
        return len(places)

    with caplog.at_level(logging.WARNING):
        batches, results = reading.map_batches(TEXTS, read)
    assert sorted(seen) == list(range(len(TEXTS)))
    assert [len(batch) for batch in batches] == results
    assert reading.counts.texts == len(TEXTS)
    assert ("the GPU has no memory for" in caplog.text) == (room < 160)
    tried = len(caplog.records)
    reading.map_batches(TEXTS, read)
    assert len(caplog.records) <= tried + 1  # it remembers what fitted, and never goes below one text
    assert reading.max_batch_tokens == 8192
    assert reading.map_batches([], read) == ([], [])


@pytest.mark.parametrize("room", [40, 70, 124])
def test_without_padding_only_tokens_count(room: int) -> None:
    reading, tried = TokenBudgetBatcher(packed_tokens=lambda: 90), []

    def read(places: list[int]) -> None:
        tried.append(sum(len(TEXTS[place]) for place in places))
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    batches, _ = reading.map_batches(TEXTS, read, supports_packing=True)
    assert sorted(place for batch in batches for place in batch) == list(range(len(TEXTS)))
    assert (reading.counts.texts, reading.counts.tokens, reading.counts.padding) == (8, 124, 0)
    assert max(tried) <= 90
    assert (len(batches) == 2) == (room == 124)


def test_batches_of_like_length_have_no_padding_either_where_the_reader_needs_none() -> None:
    texts = [(1,) * 3, (1,), (1,) * 60, (1,) * 60]
    for packed_tokens, padding in ((90, 0), (None, 2)):
        reading = TokenBudgetBatcher(packed_tokens=lambda tokens=packed_tokens: tokens)  # type: ignore[misc]
        together, _ = reading.map_batches(texts, lambda _: None)
        assert together == [[2, 3], [0, 1]]
        assert reading.counts.padding == padding


def test_what_does_not_fit_alone_fails() -> None:
    def read(places: list[int]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        TokenBudgetBatcher().map_batches(TEXTS, read)


def test_a_budget_below_one_text_is_refused() -> None:
    reading = TokenBudgetBatcher()
    reading.max_batch_tokens = 39
    with pytest.raises(ConfigError, match="max_batch_tokens is 39, and a text has 40 tokens"):
        reading.map_batches(TEXTS, len)
    with pytest.raises(ConfigError, match="max_batch_tokens must be at least 1, got 0"):
        reading.max_batch_tokens = 0


def test_vectors_are_the_same_in_any_budget_and_after_a_shortage(
    family: str, new_model: Callable[..., PromptEmbedder], texts: list[str]
) -> None:
    model = new_model(family)
    expected = np.stack([model.encode(texts, prompt=instruction) for instruction in INSTRUCTIONS])
    for budget in (60, 100, 8192):
        model.max_batch_tokens = budget
        np.testing.assert_allclose(model.encode_instructions(texts, INSTRUCTIONS), expected, atol=1e-5)
        np.testing.assert_allclose(model.encode(texts, prompt=INSTRUCTIONS[1]), expected[1], atol=1e-5)

    def short_of_memory(_: nn.Module, __: object, named: dict[str, torch.Tensor]) -> None:
        if named.get("input_ids", torch.empty(0)).numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.encoder.reader.decoder.register_forward_pre_hook(short_of_memory, with_kwargs=True)
    np.testing.assert_allclose(model.encode_instructions(texts, INSTRUCTIONS), expected, atol=1e-5)
    handle.remove()


def test_in_half_precision_on_a_cpu_batches_have_few_widths(new_model: Callable[..., PromptEmbedder]) -> None:
    """Each new number of rows of a matrix costs oneDNN's memory for good."""
    rows = [(5,) * length for length in range(1, 513, 3)]
    prompt = new_model("tiny-llama").encoder.config.num_soft_tokens
    for dtype, most, padding in ((torch.bfloat16, 40, 0.15), (torch.float32, 512, 0.0)):
        encoder = new_model("tiny-llama").encoder
        encoder.reader.decoder.to(dtype)
        widths = [encoder.read_rows([row]).mask.shape[1] for row in rows]
        assert all(width >= len(row) for width, row in zip(widths, rows, strict=True))
        assert len(set(widths)) <= most
        assert sum(widths) <= (1 + padding) * sum(map(len, rows))
        assert dtype is torch.float32 or {(width + prompt) % 8 for width in widths} == {0}
        encoder.reading.map_batches([rows[33]], lambda _: None)
        assert encoder.reading.counts.padding == widths[33] - 100


def test_wider_batches_change_no_vector(new_model: Callable[..., PromptEmbedder], texts: list[str]) -> None:
    model = new_model("tiny-qwen3")
    expected = model.encode_instructions(texts, INSTRUCTIONS)
    model.encoder._width_for = lambda longest: longest + 13  # type: ignore[method-assign]
    np.testing.assert_allclose(model.encode_instructions(texts, INSTRUCTIONS), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(texts, prompt=INSTRUCTIONS[0]), expected[0], atol=1e-5)
