"""The gate: an instruction scales directions of the frozen text states."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.backbone import TextCacheConfig, TextCacheStore
from promptembedder.errors import ConfigError
from promptembedder.method import InstructionGate, RelaxedTokens

INSTRUCTIONS = ["Group the reviews by topic", "Say how the customer feels"]


@pytest.fixture
def model(new_config: Callable[..., ModelConfig]) -> PromptEmbedder:
    """A model whose gate differs between instructions."""
    model = PromptEmbedder.create(config=new_config(gate_rank=7))
    gate = model.encoder.gate
    assert gate is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        gate.up.normal_(generator=generator)
        model.encoder.text_pooling.directions.normal_(std=0.3, generator=generator)
    return model


def test_vectors_equal_the_plain_reference(
    model: PromptEmbedder, texts: list[str], slow_vectors: Callable[[PromptEmbedder, Sequence[str], str], torch.Tensor]
) -> None:
    for instruction in INSTRUCTIONS:
        expected = slow_vectors(model, texts, instruction)
        vectors = model.encode(texts, prompt=instruction, convert_to_tensor=True)
        torch.testing.assert_close(vectors, expected, atol=2e-5, rtol=0)


def test_many_instructions_in_one_pass_equal_one_by_one(model: PromptEmbedder, texts: list[str]) -> None:
    together = torch.as_tensor(model.encode_instructions(texts, INSTRUCTIONS))
    single = [model.encode(texts, prompt=instruction, convert_to_tensor=True) for instruction in INSTRUCTIONS]
    torch.testing.assert_close(together, torch.stack(single), atol=2e-5, rtol=0)


def test_an_untrained_gate_changes_no_vector(new_config: Callable[..., ModelConfig], texts: list[str]) -> None:
    plain, gated = (PromptEmbedder.create(config=new_config(gate_rank=rank)) for rank in (0, 7))
    torch.testing.assert_close(torch.as_tensor(gated.encode(texts)), torch.as_tensor(plain.encode(texts)))


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
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


def test_the_gradient_reaches_gate_directions_and_prompter(model: PromptEmbedder, texts: list[str]) -> None:
    encoder = model.encoder.train()
    columns = [dict(encoder.preprocess(texts, prompt=instruction)) for instruction in INSTRUCTIONS]
    encoder.embed_columns(columns)
    first, second = (column["sentence_embedding"] for column in columns)
    (first * second).sum().backward()
    assert encoder.text_pooling.directions.grad.abs().sum() > 0
    assert encoder.gate.down.grad.abs().sum() > 0
    adapters = [weight for name, weight in encoder.prompter.named_parameters() if "lora_B" in name]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in adapters)


def test_the_gate_values_of_an_instruction_do_not_depend_on_its_batch() -> None:
    gate = InstructionGate(dim_p=8, prompt=3, rank=6, seed=0)
    torch.nn.init.normal_(gate.up)
    tokens = torch.randn(4, 3, 8)
    together = gate(RelaxedTokens(tokens, None))
    alone = torch.cat([gate(RelaxedTokens(row, None)) for row in tokens.split(1)])
    torch.testing.assert_close(together, alone)


def test_a_gate_without_text_pooling_is_refused(new_config: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ConfigError, match="gate_rank needs text pooling"):
        new_config(gate_rank=8, text_pooling_weight=0.0)
