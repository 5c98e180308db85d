"""An instruction decides which of the frozen text states are pooled, and how."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.backbone import TextCacheConfig, TextCacheStore
from promptembedder.errors import ConfigError
from promptembedder.method import InstructionPooling, InstructionQuery, RelaxedTokens
from promptembedder.training import transfer_to

INSTRUCTIONS = ["Group the reviews by topic", "Say how the customer feels"]


@pytest.fixture
def model(new_config: Callable[..., ModelConfig], texts: list[str]) -> PromptEmbedder:
    """A model whose pooling differs between instructions."""
    model = PromptEmbedder.create(config=new_config(instruction_heads=2))
    query, pooling = model.encoder.query, model.encoder.text_pooling
    assert query is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        query.up.normal_(std=0.1, generator=generator)
    model.encoder.fit_whitening(texts)
    assert pooling.instructed.centre.abs().sum() > 0
    return model


def test_vectors_equal_the_plain_reference(
    model: PromptEmbedder, texts: list[str], slow_vectors: Callable[[PromptEmbedder, Sequence[str], str], torch.Tensor]
) -> None:
    for instruction in INSTRUCTIONS:
        expected = slow_vectors(model, texts, instruction)
        vectors = model.encode(texts, prompt=instruction, convert_to_tensor=True)
        torch.testing.assert_close(vectors, expected, atol=2e-4, rtol=0)


def test_many_instructions_in_one_pass_equal_one_by_one(model: PromptEmbedder, texts: list[str]) -> None:
    together = torch.as_tensor(model.encode_instructions(texts, INSTRUCTIONS))
    single = [model.encode(texts, prompt=instruction, convert_to_tensor=True) for instruction in INSTRUCTIONS]
    torch.testing.assert_close(together, torch.stack(single), atol=2e-4, rtol=0)


def test_padding_and_order_of_a_batch_change_no_vector(model: PromptEmbedder, texts: list[str]) -> None:
    together = model.encode(texts, prompt=INSTRUCTIONS[0], convert_to_tensor=True)
    turned = model.encode(texts[::-1], prompt=INSTRUCTIONS[0], convert_to_tensor=True)
    alone = torch.stack([model.encode(text, prompt=INSTRUCTIONS[0], convert_to_tensor=True) for text in texts])
    torch.testing.assert_close(turned.flip(0), together, atol=2e-4, rtol=0)
    torch.testing.assert_close(alone, together, atol=2e-4, rtol=0)


def test_an_empty_text_adds_nothing(model: PromptEmbedder) -> None:
    whole = model.encode("", prompt=INSTRUCTIONS[0], convert_to_tensor=True)
    model.encoder.text_pooling.weight.zero_()
    torch.testing.assert_close(model.encode("", prompt=INSTRUCTIONS[0], convert_to_tensor=True), whole)


def test_save_and_load_is_the_identity(model: PromptEmbedder, texts: list[str], tmp_path: Path) -> None:
    model.encoder.compile_instructions(INSTRUCTIONS[:1])
    model.save(str(tmp_path / "model"))
    for with_prompter in (True, False):
        loaded = PromptEmbedder.from_pretrained(str(tmp_path / "model"), with_prompter=with_prompter)
        torch.testing.assert_close(
            torch.as_tensor(loaded.encode(texts, prompt=INSTRUCTIONS[0])),
            torch.as_tensor(model.encode(texts, prompt=INSTRUCTIONS[0])),
        )


def test_training_reads_kept_texts_as_new_ones(model: PromptEmbedder, texts: list[str]) -> None:
    encoder = model.encoder.train()
    columns = [encoder.preprocess(texts, prompt=instruction) for instruction in INSTRUCTIONS]

    def embedded() -> torch.Tensor:
        features = [dict(column) for column in columns]
        encoder.embed_columns(features)
        return torch.stack([column["sentence_embedding"] for column in features])

    expected = embedded()
    encoder.text_cache = TextCacheStore(TextCacheConfig(memory_gib=1), encoder.reader.identity)
    first, second = embedded(), embedded()
    assert len(encoder.text_cache) > 0
    encoder.text_cache = TextCacheStore(TextCacheConfig(memory_gib=1e-9), encoder.reader.identity)  # full at once
    torch.testing.assert_close(embedded(), expected)
    torch.testing.assert_close(embedded(), expected)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


def test_the_gradient_reaches_pooling_queries_and_prompter(model: PromptEmbedder, texts: list[str]) -> None:
    encoder = model.encoder.train()
    columns = [dict(encoder.preprocess(texts, prompt=instruction)) for instruction in INSTRUCTIONS]
    encoder.embed_columns(columns)
    first, second = (column["sentence_embedding"] for column in columns)
    (first * second).sum().backward()
    for part in (encoder.text_pooling.instructed, encoder.query):
        assert all(weight.grad.abs().sum() > 0 for weight in part.parameters())
    adapters = [weight for name, weight in encoder.prompter.named_parameters() if "lora_B" in name]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in adapters)


def test_the_query_of_an_instruction_does_not_depend_on_its_batch() -> None:
    query = InstructionQuery(dim_p=8, prompt=3, heads=2, seed=0)
    torch.nn.init.normal_(query.up)
    tokens = torch.randn(4, 3, 8)
    together = query(RelaxedTokens(tokens, None))
    alone = torch.cat([query(RelaxedTokens(row, None)) for row in tokens.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_fitted_tokens_are_centred_and_white() -> None:
    states = torch.randn(4000, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 2, 12) + 5
    pooling = InstructionPooling(12, heads=1)
    pooling.fit(states)
    reduced = pooling.reduce(states.unsqueeze(0), torch.ones(1, len(states), dtype=torch.long))[0]
    covariance = reduced.T @ reduced / len(reduced)
    shrunk = 1 / 1.1  # all standardised variances are 1, each raised by a tenth of their mean
    torch.testing.assert_close(covariance, shrunk * torch.eye(12), atol=0.05, rtol=0)


def test_heads_without_text_pooling_are_refused(new_config: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ConfigError, match="instruction_heads needs text pooling"):
        new_config(instruction_heads=4, text_pooling_weight=0.0)


def test_a_transferred_model_pools_texts_alike(model: PromptEmbedder, texts: list[str]) -> None:
    """Untrained maps on a new reader would replace the text's state by noise."""
    moved = transfer_to(model, "random:tiny-qwen3", steps=0)
    assert moved.encoder.config.instruction_heads == 0
    assert np.isfinite(moved.encode(texts, prompt=INSTRUCTIONS[0])).all()
    same = transfer_to(model, model.encoder.reader.identity.source, steps=0)
    torch.testing.assert_close(
        torch.as_tensor(same.encode(texts, prompt=INSTRUCTIONS[0])),
        torch.as_tensor(model.encode(texts, prompt=INSTRUCTIONS[0])),
        atol=2e-4,
        rtol=0,
    )
