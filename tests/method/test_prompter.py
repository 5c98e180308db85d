"""Laws of generation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.method import (
    REFERENCE_INSTRUCTIONS,
    RELAXATIONS,
    Prompter,
    RelaxationConfig,
    RelaxedTokens,
    build_parts,
    trained_state,
)

PROMPTS = ["Task: find", "x", "Task: say in a few words what the text is about, and nothing else:"]
COUNT = 4
NewPrompter = Callable[..., Prompter]
SlowTokens = Callable[[Prompter, str], RelaxedTokens]


@pytest.fixture
def build_prompter(new_config: Callable[..., ModelConfig]) -> NewPrompter:
    """Makes a tiny prompter; unless it is to be `fresh`, what trains is moved away from its start."""

    def made(
        name: str = "tiny-llama",
        *,
        kind: str = "softmax",
        tuning: str = "lora",
        fresh: bool = False,
        count: int = COUNT,
    ) -> Prompter:
        relaxation = RelaxationConfig(kind=kind, temperature=0.5, top_k=7)
        config = new_config("tiny-llama", name, tuning=tuning, relaxation=relaxation, num_soft_tokens=count)
        prompter = build_parts(config).prompter.eval()
        with torch.no_grad():
            for weight in prompter.parameters():
                if weight.requires_grad and not fresh:
                    weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        return prompter

    return made


def generated(prompter: Prompter, prompts: list[str]) -> RelaxedTokens:
    batch = prompter.backbone.tokenizer.tokenize(prompts, max_length=90)
    return prompter(batch.ids, batch.mask)


def assert_close(found: RelaxedTokens, expected: RelaxedTokens, *, row: int = 0) -> None:
    size = float(expected.embeddings.detach().abs().max())
    torch.testing.assert_close(found.embeddings[row], expected.embeddings[0], atol=1e-5 * max(size, 1), rtol=0)
    if expected.weights is not None:
        assert found.weights is not None
        torch.testing.assert_close(found.weights[row], expected.weights[0], atol=1e-5, rtol=0)


@pytest.mark.every_family
def test_generation_with_a_cache_equals_reading_the_growing_sequence_anew(
    family: str, build_prompter: NewPrompter, slow_tokens: SlowTokens
) -> None:
    prompter = build_prompter(family)
    for prompt in PROMPTS:
        assert_close(generated(prompter, [prompt]), slow_tokens(prompter, prompt))


@pytest.mark.parametrize("kind", [*RELAXATIONS, "hidden"])
def test_each_relaxation_is_fed_back_as_it_is(kind: str, build_prompter: NewPrompter, slow_tokens: SlowTokens) -> None:
    prompter = build_prompter(kind=kind)
    assert_close(generated(prompter, PROMPTS[:1]), slow_tokens(prompter, PROMPTS[0]))


def test_a_batch_of_prompts_gives_what_each_gives_alone(family: str, build_prompter: NewPrompter) -> None:
    prompter = build_prompter(family)
    batch = generated(prompter, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert_close(batch, generated(prompter, [prompt]), row=row)


def test_more_tokens_begin_with_the_fewer_ones(build_prompter: NewPrompter) -> None:
    few, many = (generated(build_prompter(count=count), PROMPTS).weights for count in (2, 5))
    torch.testing.assert_close(many[:, :2], few)


def test_capped_logits_are_those_of_the_model_itself(build_prompter: NewPrompter, slow_tokens: SlowTokens) -> None:
    """Gemma 2 caps its logits after the head, which we call ourselves."""
    prompter = build_prompter("tiny-gemma3")
    free = generated(prompter, PROMPTS[:1])
    prompter.backbone.model.config.final_logit_softcapping = 0.5
    capped = generated(prompter, PROMPTS[:1])
    assert not torch.allclose(capped.embeddings, free.embeddings, atol=1e-3)
    assert_close(capped, slow_tokens(prompter, PROMPTS[0]))


def test_gradients_run_through_every_step_of_the_generation(
    build_prompter: NewPrompter, slow_tokens: SlowTokens
) -> None:
    gradients = []
    for tokens_of in (lambda p: generated(p, PROMPTS[:1]), lambda p: slow_tokens(p, PROMPTS[0])):
        prompter = build_prompter()
        last = tokens_of(prompter).embeddings[:, -1]
        (last * torch.linspace(-1, 1, last.shape[1])).sum().backward()
        gradients.append([weight.grad for weight in prompter.parameters() if weight.requires_grad])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5 * float(slow.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["softmax", "hidden"])
@pytest.mark.parametrize("tuning", ["lora", "full", "frozen"])
def test_tuning_says_which_weights_train(kind: str, tuning: str, build_prompter: NewPrompter) -> None:
    prompter = build_prompter(kind=kind, tuning=tuning)
    trained = {name for name, weight in prompter.named_parameters() if weight.requires_grad}
    every = {name for name, _ in prompter.named_parameters()}
    projection = {"projection.weight"} if kind == "hidden" else set()
    anchor = {"soft_prompt_delta", "log_scale"}
    adapters = {name for name in every if "lora_" in name}
    expected = {"full": every, "frozen": projection, "lora": adapters | anchor | projection}
    assert trained == expected[tuning]


@pytest.mark.every_family
def test_adapters_sit_on_every_linear_layer_but_the_head(family: str, build_prompter: NewPrompter) -> None:
    prompter = build_prompter(family)
    names = {name for name, weight in prompter.backbone.named_parameters() if weight.dim() == 2}
    adapted = {name.split(".lora_")[0] for name in names if ".lora_" in name}
    others = {name for name in names if ".lora_" not in name and ".base_layer." not in name}
    assert {name.split(".")[-2] for name in others} <= {"embed_tokens", "lm_head", "wte", "wpe"}
    assert len(adapted) == len({name for name in names if ".base_layer." in name}) >= 4 * 2  # in each of two layers


def test_a_new_adapter_changes_nothing_yet(family: str, build_prompter: NewPrompter) -> None:
    new, bare = (build_prompter(family, tuning=tuning, fresh=True) for tuning in ("lora", "frozen"))
    assert_close(generated(new, PROMPTS[:1]), generated(bare, PROMPTS[:1]))


def test_a_new_projection_changes_nothing_but_the_length(build_prompter: NewPrompter) -> None:
    prompter = build_prompter(kind="hidden", fresh=True)
    batch = prompter.backbone.tokenizer.tokenize(PROMPTS[:1], max_length=90)
    state = prompter.backbone.decoder(input_ids=batch.ids).last_hidden_state[:, -1]
    token = generated(prompter, PROMPTS[:1]).embeddings[:, 0] - prompter.init_embeddings[0]
    torch.testing.assert_close(
        token, prompter.backbone.mean_embedding_norm * state / state.norm(), atol=1e-5, rtol=1e-5
    )


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
    backbone = BackboneConfig(source="random:tiny-llama", dtype="bfloat16")
    config = ModelConfig(prompter=PrompterConfig(backbone=backbone, tuning=tuning, lora_rank=4), reader=backbone)
    prompter = build_parts(config).prompter.eval()
    trained = {weight.dtype for weight in prompter.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    tokens = generated(prompter, PROMPTS)
    assert bool(torch.isfinite(tokens.embeddings).all())
    tokens.embeddings.float().square().sum().backward()


def test_the_prompt_is_read_with_its_positions(build_prompter: NewPrompter, slow_tokens: SlowTokens) -> None:
    """Left padding must not shift the positions of GPT-2, which has a table of them."""
    prompter = build_prompter("tiny-gpt2")
    batch = generated(prompter, [PROMPTS[0], "y" * 80])
    assert_close(batch, slow_tokens(prompter, PROMPTS[0]))


def test_the_anchor_begins_as_the_last_words_of_its_phrase(family: str, build_prompter: NewPrompter) -> None:
    """In the scale that the first layer reads."""
    prompter = build_prompter("tiny-gemma3" if family == "tiny-gemma3" else family, fresh=True)
    phrase = PrompterConfig().init_text
    ids = prompter.backbone.tokenizer.hf(phrase, add_special_tokens=False)["input_ids"][-COUNT:]
    expected = prompter.backbone.model.get_input_embeddings()(torch.tensor(ids))
    torch.testing.assert_close(prompter.init_embeddings, expected.detach(), atol=1e-4, rtol=1e-4)
    assert float(prompter.soft_prompt_delta.detach().abs().max()) == float(prompter.log_scale.detach()) == 0.0


@pytest.mark.parametrize("anchor", ["", "ab"])
def test_a_short_phrase_is_repeated_and_none_is_no_anchor(anchor: str, new_config: Callable) -> None:
    config = new_config()
    config = replace(config, num_soft_tokens=5, prompter=replace(config.prompter, init_text=anchor))
    start = build_parts(config).prompter.init_embeddings
    assert start.shape == (5, 32)
    rows = {"": [0, 0, 0, 0, 0], "ab": [0, 1, 0, 1, 0]}[anchor]  # counted from the end
    for place, row in zip((4, 3, 2, 1, 0), rows, strict=True):
        assert torch.equal(start[place], start[4 - row])
    assert bool((start == 0).all()) == (anchor == "")


def test_the_template_must_have_a_place_for_the_instruction() -> None:
    config = PrompterConfig()
    assert "{instruction}" in config.template
    with pytest.raises(ValueError, match=r"must contain \{instruction\}, got 'Task:'"):
        replace(config, template="Task:")


INSTRUCTIONS = ["Group by topic", "Which language is this?", "Find the same opinion", "Who acts in the text?"]


@pytest.fixture
def state_model(new_config: Callable[..., ModelConfig]) -> Callable[[], PromptEmbedder]:
    """Makes an untrained model whose prompter passes on standardised hidden states."""

    def made() -> PromptEmbedder:
        config = new_config("tiny-llama")
        return PromptEmbedder.create(config=replace(config, prompter=replace(config.prompter, output="state")))

    return made


def test_standardised_states_have_mean_zero_and_the_norm_of_an_embedding(state_model: Callable) -> None:
    encoder = state_model().encoder.eval()
    rows = encoder.generate_relaxed(list(REFERENCE_INSTRUCTIONS))
    states = torch.cat([row.embeddings for row in rows]) - encoder.prompter.init_embeddings
    scale = encoder.prompter.backbone.mean_embedding_norm
    assert float(states.mean(dim=0).abs().max()) < 1e-3 * scale
    assert float(states.norm(dim=-1).square().mean().sqrt()) == pytest.approx(scale, rel=0.02)


def test_instructions_differ_more_in_standardised_states_than_in_relaxed_tokens(
    state_model: Callable, new_config: Callable[..., ModelConfig]
) -> None:
    def mean_cosine(model: PromptEmbedder) -> float:
        rows = model.encoder.eval().generate_relaxed(INSTRUCTIONS)
        vectors = torch.cat([row.embeddings.flatten(1) for row in rows])
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        others = ~torch.eye(len(vectors), dtype=torch.bool)
        return float((vectors @ vectors.T)[others].mean())

    tokens = mean_cosine(PromptEmbedder.create(config=new_config("tiny-llama")))
    states = mean_cosine(state_model())
    assert states < 0.7 < tokens


def test_gradient_of_each_standardised_state_reaches_the_adapters(state_model: Callable) -> None:
    prompter = state_model().encoder.train().prompter
    batch = prompter.backbone.tokenizer.tokenize(PROMPTS[2:], max_length=90)
    for step in range(prompter.num_soft_tokens):
        prompter.zero_grad()
        prompter(batch.ids, batch.mask).embeddings[:, step].square().sum().backward()
        gradients = [weight.grad for name, weight in prompter.named_parameters() if "lora_B" in name]
        assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_saved_statistics_make_loading_an_identity(state_model: Callable, tmp_path: Path) -> None:
    model = state_model()
    with torch.no_grad():
        model.encoder.prompter.state_mean.add_(0.5)  # not what a new prompter would compute
    expected = model.encode(["a text"], prompt=INSTRUCTIONS[0])
    model.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    torch.testing.assert_close(torch.tensor(loaded.encode(["a text"], prompt=INSTRUCTIONS[0])), torch.tensor(expected))


def test_what_training_adds_is_zero_for_the_average_instruction(new_config: Callable[..., ModelConfig]) -> None:
    config = new_config()
    config = replace(config, prompter=replace(config.prompter, output="state"))
    encoder = PromptEmbedder.create(config=config).encoder
    static = RelaxedTokens(encoder.prompter.init_embeddings[None], None, encoder.prompter.init_embeddings)
    before = encoder.align(static)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in [*encoder.alignment.parameters(), *encoder.deep.parameters()]:
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator))
    torch.testing.assert_close(encoder.align(static), before)
    spoken = RelaxedTokens(static.embeddings + 1.0, None, static.offset)
    assert (encoder.align(spoken) - before).abs().max() > 0.1


def test_an_output_of_states_trains_no_static_prompt(new_config: Callable[..., ModelConfig]) -> None:
    config = new_config()
    config = replace(config, prompter=replace(config.prompter, output="state"))
    trained = trained_state(PromptEmbedder.create(config=config).encoder)
    assert not any(name.endswith(("bias", "soft_prompt_delta")) for name in trained)
