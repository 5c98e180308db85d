"""Laws of the vectors that a server computes: those of the model, whoever else asks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptembedder import PromptEmbedder
from promptembedder.backbone import TokenIds
from promptembedder.errors import ConfigError, WeightsError
from promptembedder.model import DualEncoder
from promptembedder.server.batch_embedder import BatchEmbedder, InstructionKey

NewModel = Callable[..., PromptEmbedder]
TEXTS = ["a red house", "the river is cold", "fast fast car", "Grüße", "a road " * 9]


def rows_of(encoder: DualEncoder, texts: list[str]) -> list[TokenIds]:
    tokenizer = encoder.reader.tokenizer
    return [(*tokenizer.prefix, *ids) for ids in tokenizer.text_ids(texts)]


def build_embedder(model: PromptEmbedder, *, budget: int = 64, cached: int = 8) -> BatchEmbedder:
    return BatchEmbedder(model.encoder, max_batch_tokens=budget, max_cached_instructions=cached)


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_each_text_gets_its_own_instructions_vectors(family: str, new_model: NewModel, budget: int) -> None:
    model = new_model(family)
    rows = rows_of(model.encoder, TEXTS)
    wanted = {
        rows[0]: ["find the same"],
        rows[1]: ["name the mood", "find the same"],
        rows[2]: ["name the mood"],
        rows[3]: ["find the same", "name the mood"],
        rows[4]: ["find the same", "name the mood"],
    }
    keys = {row: [InstructionKey("", asked) for asked in own] for row, own in wanted.items()}
    found = build_embedder(model, budget=budget).embed(keys)
    assert len(found) == 8
    for text, row in zip(TEXTS, rows, strict=True):
        for asked in wanted[row]:
            alone = model.encode([text], prompt=asked)[0]
            np.testing.assert_allclose(found[row, InstructionKey("", asked)], alone, atol=1e-5)


def test_one_tenants_instruction_is_generated_anew_for_another(new_model: NewModel) -> None:
    model = new_model()
    asked: list[list[str]] = []
    generate = model.encoder.generate
    model.encoder.generate = lambda those: asked.append(list(those)) or generate(those)  # type: ignore[method-assign, func-returns-value]
    embedder, row = build_embedder(model), rows_of(model.encoder, TEXTS)[0]
    for tenant in ("one", "one", "two", "one"):
        embedder.embed({row: [InstructionKey(tenant, "find the same")]})
    assert asked == [["find the same"], ["find the same"]]


def test_the_memory_of_generated_soft_tokens_is_bounded_and_forgets_the_least_used(new_model: NewModel) -> None:
    model = new_model()
    asked: list[str] = []
    generate = model.encoder.generate
    model.encoder.generate = lambda those: asked.extend(those) or generate(those)  # type: ignore[method-assign, func-returns-value]
    embedder, row = build_embedder(model, cached=2), rows_of(model.encoder, TEXTS)[0]
    for instruction in ("a", "b", "a", "c", "a", "b"):
        embedder.embed({row: [InstructionKey("", instruction)]})
    assert asked == ["a", "b", "c", "b"]


def test_compiled_instructions_need_no_prompter_and_others_are_refused(new_model: NewModel) -> None:
    model = new_model()
    model.compile_instructions(["find the same"])
    before = model.encode(TEXTS[:1], prompt="find the same")[0]
    model.encoder.prompter = None
    row = rows_of(model.encoder, TEXTS)[0]
    found = build_embedder(model).embed({row: [InstructionKey("", "find the same")]})
    np.testing.assert_allclose(next(iter(found.values())), before, atol=1e-6)
    with pytest.raises(ConfigError, match="is not compiled"):
        build_embedder(model).embed({row: [InstructionKey("", "name the mood")]})


def test_vectors_that_are_not_finite_are_refused(new_model: NewModel) -> None:
    model = new_model()
    with torch.no_grad():
        model.encoder.alignment.base.fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        build_embedder(model).embed({rows_of(model.encoder, TEXTS)[0]: [InstructionKey("", "x")]})
