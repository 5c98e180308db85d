"""Laws of generation."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.backbones import Backbone, load_backbone
from promptembedder.models import Prompter
from promptembedder.nn import RELAXATIONS, RelaxationConfig, RelaxedTokens

PROMPTS = ["Task: find", "x", "Task: say in a few words what the text is about, and nothing else:"]
COUNT = 4
NewBackbone = Callable[..., Backbone]
SlowTokens = Callable[[Prompter, str, int], RelaxedTokens]


def new_prompter(
    new_backbone: NewBackbone, name: str = "tiny-llama", *, kind: str = "softmax", tuning: str = "lora", lively: bool = True
) -> Prompter:
    relaxation = RelaxationConfig(kind=kind, temperature=0.5, top_k=7)
    config = PrompterConfig(tuning=tuning, lora_rank=4, lora_alpha=8)
    prompter = Prompter(new_backbone(name, head=True), config, relaxation).eval()
    with torch.no_grad():
        for weight in prompter.parameters():
            if weight.requires_grad and lively:  # adapters start as zero
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return prompter


def generated(prompter: Prompter, prompts: list[str], count: int = COUNT) -> RelaxedTokens:
    batch = prompter.backbone.tokenizer.tokenize(prompts, max_length=90)
    return prompter(batch.ids, batch.mask, num_soft_tokens=count)


def assert_close(found: RelaxedTokens, expected: RelaxedTokens, *, row: int = 0) -> None:
    size = float(expected.embeddings.detach().abs().max())
    torch.testing.assert_close(found.embeddings[row], expected.embeddings[0], atol=1e-5 * max(size, 1), rtol=0)
    if expected.weights is not None:
        assert found.weights is not None
        torch.testing.assert_close(found.weights[row], expected.weights[0], atol=1e-5, rtol=0)


def test_generation_with_a_cache_equals_reading_the_growing_sequence_anew(
    family: str, new_backbone: NewBackbone, slow_tokens: SlowTokens
) -> None:
    prompter = new_prompter(new_backbone, family)
    for prompt in PROMPTS:
        assert_close(generated(prompter, [prompt]), slow_tokens(prompter, prompt, COUNT))


@pytest.mark.parametrize("kind", [*RELAXATIONS, "hidden"])
def test_each_relaxation_is_fed_back_as_it_is(kind: str, new_backbone: NewBackbone, slow_tokens: SlowTokens) -> None:
    prompter = new_prompter(new_backbone, kind=kind)
    assert_close(generated(prompter, PROMPTS[:1]), slow_tokens(prompter, PROMPTS[0], COUNT))


def test_a_batch_of_prompts_gives_what_each_gives_alone(family: str, new_backbone: NewBackbone) -> None:
    prompter = new_prompter(new_backbone, family)
    batch = generated(prompter, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert_close(batch, generated(prompter, [prompt]), row=row)


def test_more_tokens_begin_with_the_fewer_ones(new_backbone: NewBackbone) -> None:
    prompter = new_prompter(new_backbone)
    few, many = generated(prompter, PROMPTS, 2), generated(prompter, PROMPTS, 5)
    torch.testing.assert_close(many.embeddings[:, :2], few.embeddings)


def test_capped_logits_are_those_of_the_model_itself(new_backbone: NewBackbone, slow_tokens: SlowTokens) -> None:
    """Gemma 2 caps its logits after the head, which we call ourselves."""
    prompter = new_prompter(new_backbone, "tiny-gemma3")
    free = generated(prompter, PROMPTS[:1])
    prompter.backbone.model.config.final_logit_softcapping = 0.5
    capped = generated(prompter, PROMPTS[:1])
    assert not torch.allclose(capped.embeddings, free.embeddings, atol=1e-3)
    assert_close(capped, slow_tokens(prompter, PROMPTS[0], COUNT))


def test_gradients_run_through_every_step_of_the_generation(
    new_backbone: NewBackbone, slow_tokens: SlowTokens
) -> None:
    gradients = []
    for tokens_of in (lambda p: generated(p, PROMPTS[:1]), lambda p: slow_tokens(p, PROMPTS[0], COUNT)):
        prompter = new_prompter(new_backbone)
        last = tokens_of(prompter).embeddings[:, -1]
        (last * torch.linspace(-1, 1, last.shape[1])).sum().backward()
        gradients.append([weight.grad for weight in prompter.parameters() if weight.requires_grad])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5 * float(slow.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["softmax", "hidden"])
@pytest.mark.parametrize("tuning", ["lora", "full", "frozen"])
def test_tuning_says_which_weights_train(kind: str, tuning: str, new_backbone: NewBackbone) -> None:
    prompter = new_prompter(new_backbone, kind=kind, tuning=tuning)
    trained = {name for name, weight in prompter.named_parameters() if weight.requires_grad}
    every = {name for name, _ in prompter.named_parameters()}
    projection = {"projection.weight"} if kind == "hidden" else set()
    expected = {"full": every, "frozen": projection, "lora": {name for name in every if "lora_" in name} | projection}
    assert trained == expected[tuning]


def test_adapters_sit_on_every_linear_layer_but_the_head(family: str, new_backbone: NewBackbone) -> None:
    prompter = new_prompter(new_backbone, family)
    adapted = {name.split(".lora_")[0] for name, _ in prompter.named_parameters() if ".lora_" in name}
    matrices = {
        name.removesuffix(".base_layer.weight")
        for name, weight in prompter.named_parameters()
        if name.endswith(".base_layer.weight") and weight.dim() == 2
    }
    assert adapted == matrices
    assert len(adapted) >= 4 * 3  # four or more in each of three layers
    assert not any("lm_head" in name or "embed" in name or "wte" in name for name in adapted)


def test_a_new_adapter_changes_nothing_yet(family: str, new_backbone: NewBackbone) -> None:
    new, bare = (new_prompter(new_backbone, family, tuning=tuning, lively=False) for tuning in ("lora", "frozen"))
    assert_close(generated(new, PROMPTS[:1]), generated(bare, PROMPTS[:1]))


def test_a_new_projection_changes_nothing_but_the_length(new_backbone: NewBackbone) -> None:
    prompter = new_prompter(new_backbone, kind="hidden", lively=False)
    batch = prompter.backbone.tokenizer.tokenize(PROMPTS[:1], max_length=90)
    state = prompter.backbone.decoder(input_ids=batch.ids).last_hidden_state[:, -1]
    token = generated(prompter, PROMPTS[:1]).embeddings[:, 0]
    torch.testing.assert_close(token, prompter.backbone.table_norm * state / state.norm(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "hidden"])
def test_the_adapters_start_comes_from_the_seed_and_from_nothing_else(kind: str, new_config: Callable) -> None:
    """The projection of `hidden` drew from the global random state before it became the identity."""
    config: ModelConfig = new_config(relaxation=RelaxationConfig(kind=kind))
    before = torch.get_rng_state()
    one = PromptEmbedder.create(config=config, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    same, other = PromptEmbedder.create(config=config, seed=3), PromptEmbedder.create(config=config, seed=4)
    pairs = list(zip(one.encoder.trained_weights(), same.encoder.trained_weights(), strict=True))
    assert all(torch.equal(*pair) for pair in pairs)
    assert any(
        not torch.equal(*pair)
        for pair in zip(one.encoder.trained_weights(), other.encoder.trained_weights(), strict=True)
    )


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_what_trains_is_float32_on_a_backbone_in_bfloat16(tuning: str) -> None:
    """An optimiser's steps vanish in bfloat16 weights."""
    config = BackboneConfig(source="random:tiny-llama", dtype="bfloat16")
    prompter = Prompter(
        load_backbone(config, head=True), PrompterConfig(tuning=tuning, lora_rank=4), RelaxationConfig()
    ).eval()
    trained = {weight.dtype for weight in prompter.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    tokens = generated(prompter, PROMPTS)
    assert bool(torch.isfinite(tokens.embeddings).all())
    tokens.embeddings.float().square().sum().backward()


def test_the_prompt_is_read_with_its_positions(new_backbone: NewBackbone, slow_tokens: SlowTokens) -> None:
    """Left padding must not shift the positions of GPT-2, which has a table of them."""
    prompter = new_prompter(new_backbone, "tiny-gpt2")
    batch = generated(prompter, [PROMPTS[0], "y" * 80])
    assert_close(batch, slow_tokens(prompter, PROMPTS[0], COUNT))


def test_the_template_must_have_a_place_for_the_instruction() -> None:
    config = PrompterConfig()
    assert "{instruction}" in config.template
    with pytest.raises(ValueError, match=r"must hold \{instruction\}, got 'Task:'"):
        replace(config, template="Task:")
