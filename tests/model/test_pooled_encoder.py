"""Instruction and text read together and pooled: what is read, what trains, and the same vector in any batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from promptembedder.backbone import Backbone, BackboneConfig, decoder_layers, load_backbone
from promptembedder.errors import WeightsError
from promptembedder.method.text_encoder import trained_state
from promptembedder.model import BaselineEmbedder, PooledEncoder

pytestmark = pytest.mark.slow

NewBaseline = Callable[..., BaselineEmbedder]
INSTRUCTION = "find the same thing"
AROUND = {  # before and after the text, with an instruction and without
    "plain": (("", ""), ("", "")),
    "instruct": ((f"Instruct: {INSTRUCTION}\nQuery: ", ""), ("", "")),
    "prompteol": (
        (f'Task: {INSTRUCTION}\nThis text: "', '" means in one word: "'),
        ('This text: "', '" means in one word: "'),
    ),
}
FEW_FAMILIES = pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
each_attention = pytest.mark.parametrize("attention", ["causal", "bidirectional"])


def encoder_of(model: BaselineEmbedder) -> PooledEncoder:
    encoder = model.text_encoder
    assert isinstance(encoder, PooledEncoder)
    return encoder


def read_as(model: BaselineEmbedder, text: str, prompt: str | None = INSTRUCTION) -> str:
    """What the reader reads after the newline that texts begin with, as a string."""
    return model.tokenizer.decode(model.preprocess([text], prompt=prompt)["input_ids"][0]).removeprefix("\n")


def ids_of(reader: Backbone, text: str) -> list[int]:
    return reader.tokenizer.hf(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def pooled_slowly(model: BaselineEmbedder, text: str, prompt: str | None) -> np.ndarray:
    """The plain reference: one text, read alone and pooled by hand."""
    encoder = encoder_of(model)
    reader = encoder.reader
    before, after = AROUND[encoder.baseline.template][0 if prompt else 1]
    head = ([256] if reader.quirks.needs_bos else ids_of(reader, "\n")) + ids_of(reader, before)
    own, tail = ids_of(reader, text), ids_of(reader, after)
    own = own[: (reader.max_positions or 10_000) - len(head) - len(tail)]
    with torch.no_grad():
        states = reader.decoder(input_ids=torch.tensor([head + own + tail]), use_cache=False).last_hidden_state[0]
    if encoder.config.pooling == "last":
        state = states[-1]
    elif own:
        state = states[len(head) : len(head) + len(own)].mean(dim=0)
    else:
        return np.zeros(reader.dim)
    return (state / state.norm()).numpy()


def gradients(model: BaselineEmbedder, embedded: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(3))
    (weights * embedded).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_is_pooled_from_the_text_read_alone_within_its_template(
    family: str, pooling: str, new_baseline: NewBaseline, new_backbone: Callable[..., Backbone], texts: list[str]
) -> None:
    reader = new_backbone(family)
    for template in AROUND:
        model = new_baseline("frozen", reader=reader, model={"pooling": pooling}, template=template)
        for prompt in (INSTRUCTION, None):
            slow = np.stack([pooled_slowly(model, text, prompt) for text in texts])
            np.testing.assert_allclose(model.encode(texts, prompt=prompt), slow, atol=1e-5)


def test_the_templates_are_read_as_they_are_written(new_baseline: NewBaseline) -> None:
    models = {template: new_baseline("frozen", template=template) for template in AROUND}
    assert read_as(models["plain"], "a b") == "a b"
    assert read_as(models["instruct"], "a b", "find") == "Instruct: find\nQuery: a b"
    assert read_as(models["instruct"], "a b", None) == "a b"
    assert read_as(models["prompteol"], "a b", "find") == 'Task: find\nThis text: "a b" means in one word: "'
    assert read_as(models["prompteol"], "a b", None) == 'This text: "a b" means in one word: "'


@pytest.mark.parametrize("template", ["instruct", "prompteol"])
@pytest.mark.parametrize("prompt", ["{instruction}", "{0} {text} {{x}} %s", "<|end|><|start|>", "half \ud83d"])
def test_an_instruction_is_text_whatever_it_spells(prompt: str, template: str, new_baseline: NewBaseline) -> None:
    model = new_baseline("frozen", "tiny-gemma3", template=template)
    before = {"instruct": "Instruct: ", "prompteol": "Task: "}[template]
    assert prompt.replace("\ud83d", "\ufffd") + "\n" in read_as(model, "a", prompt)
    assert read_as(model, "a", prompt).removeprefix("<|start|>").startswith(before)
    ids = model.preprocess(["a"], prompt=prompt)["input_ids"][0].tolist()
    assert ids[0] == 256
    assert not {256, 257} & set(ids[1:])
    assert np.isfinite(model.encode(["a"], prompt=prompt)).all()


def test_a_special_tokens_string_in_a_text_is_text(new_baseline: NewBaseline) -> None:
    model = new_baseline("frozen")
    features = model.preprocess(["<|end|>"], prompt=INSTRUCTION)
    assert model.tokenizer.eos_token_id not in features["input_ids"][0].tolist()
    assert int(features["text_mask"].sum()) == len("<|end|>")


@pytest.mark.parametrize(("template", "changes"), [("plain", False), ("instruct", True), ("prompteol", True)])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_instruction_changes_each_vector_where_the_template_has_a_place_for_it(
    pooling: str, template: str, changes: bool, new_baseline: NewBaseline
) -> None:
    model = new_baseline("frozen", model={"pooling": pooling}, template=template)
    one, other = (model.encode(["a", "two words"], prompt=prompt) for prompt in (INSTRUCTION, "count the verbs"))
    assert (np.abs(one - other).max(axis=1).min() > 1e-3) == changes


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_a_blank_instruction_is_none(prompt: str, new_baseline: NewBaseline) -> None:
    model = new_baseline("frozen")
    np.testing.assert_array_equal(model.encode(["a"], prompt=prompt), model.encode(["a"], prompt=None))


@pytest.mark.parametrize("template", ["instruct", "prompteol"])
def test_a_long_text_loses_its_end_and_nothing_of_the_template(
    template: str, new_baseline: NewBaseline, caplog: pytest.LogCaptureFixture
) -> None:
    model = new_baseline("frozen", model={"max_seq_length": 8}, template=template)
    before, after = AROUND[template][0]
    assert read_as(model, "12345678 and more") == f"{before}12345678{after}"
    assert model.text_encoder.truncated_texts == 1
    assert "1 texts so far were longer than 8 tokens and lost their end" in caplog.text
    np.testing.assert_array_equal(
        model.encode(["12345678 and more"], prompt=INSTRUCTION), model.encode(["12345678"], prompt=INSTRUCTION)
    )


def test_on_gpt2_the_text_leaves_the_template_its_positions(new_baseline: NewBaseline) -> None:
    """There are 96, and the text may ask for all of them."""
    model = new_baseline("frozen", "tiny-gpt2", template="prompteol")
    before, after = AROUND["prompteol"][0]
    assert read_as(model, "x" * 500) == before + "x" * (95 - len(before) - len(after)) + after
    assert np.isfinite(model.encode(["x" * 500, "y"], prompt=INSTRUCTION)).all()
    assert np.isfinite(model.encode(["x" * 500], prompt="find " * 100)).all()


def test_an_empty_text_has_the_zero_vector_where_there_is_nothing_to_pool(new_baseline: NewBaseline) -> None:
    mean, last, plain = (
        new_baseline("frozen", model={"pooling": pooling, "text_start": start}, template=template)
        for pooling, template, start in (("mean", "instruct", "\n"), ("last", "instruct", "\n"), ("last", "plain", ""))
    )
    assert not mean.encode([""], prompt=INSTRUCTION).any()
    assert not plain.encode([""], prompt=INSTRUCTION).any()
    assert np.linalg.norm(last.encode([""], prompt=INSTRUCTION)) == pytest.approx(1.0, abs=1e-5)
    assert len(mean.encode([])) == 0


def test_an_empty_text_in_a_batch_leaves_every_gradient_finite(new_baseline: NewBaseline) -> None:
    model = new_baseline("lora").train()
    found = gradients(model, model(model.preprocess(["", "a text"]))["sentence_embedding"])
    assert len(found) == len(encoder_of(model).trained_weights())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())


# -- the same vector in any batch --------------------------------------------------------------------------------------


@FEW_FAMILIES
@each_attention
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_text_has_the_same_vector_alone_and_in_any_batch(
    name: str, attention: str, pooling: str, new_baseline: NewBaseline, texts: list[str]
) -> None:
    model = new_baseline("lora", name, model={"pooling": pooling}, attention=attention)
    alone = np.concatenate([model.encode([text], prompt=INSTRUCTION) for text in texts])
    for batch_size in (2, 6):
        found = model.encode(texts, prompt=INSTRUCTION, batch_size=batch_size)
        np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(model.encode(texts[::-1], prompt=INSTRUCTION)[::-1], alone, atol=1e-5)
    features = model.preprocess(texts, prompt=INSTRUCTION)
    for left, right in ((9, 0), (0, 9), (4, 5)):
        padded = {key: F.pad(tensor, (left, right)) for key, tensor in features.items()}
        with torch.no_grad():
            np.testing.assert_allclose(model(padded)["sentence_embedding"].numpy(), alone, atol=1e-5)


@FEW_FAMILIES
@each_attention
@pytest.mark.parametrize("text", ["few", "a text of more than thirty-two tokens"])
def test_training_sees_the_vector_that_is_served(
    name: str, attention: str, text: str, new_baseline: NewBaseline
) -> None:
    """Texts of a few tokens and of one length took another way in training, where they were read causally."""
    model = new_baseline("lora", name, template="plain", attention=attention)
    served = model.encode([text, text])
    trained = model.train()(model.preprocess([text, text]))["sentence_embedding"]
    np.testing.assert_allclose(trained.detach().numpy(), served, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3", "tiny-gemma3"])
@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_with_bidirectional_attention_the_first_state_depends_on_the_last_token(
    name: str, kind: str, new_baseline: NewBaseline
) -> None:
    for attention in ("causal", "bidirectional"):
        model = new_baseline(kind, name, template="plain", attention=attention).train()
        states: list[Tensor] = []
        encoder_of(model).reader.decoder.register_forward_hook(
            lambda *args, states=states: states.append(args[-1].last_hidden_state.detach())
        )
        for text in ("some words a", "some words z"):
            model(model.preprocess([text]))
        first = 1 if encoder_of(model).reader.quirks.needs_bos else 0
        difference = float((states[0] - states[1])[0, first].abs().max())
        assert (difference > 1e-4) == (attention == "bidirectional")


# -- what trains -------------------------------------------------------------------------------------------------------


def test_lora_is_on_all_seven_matrices_of_every_layer_of_a_llama(new_baseline: NewBaseline) -> None:
    trained = trained_state(new_baseline("lora").text_encoder)
    matrices = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert set(trained) == {
        f"reader.model.layers.{layer}.{matrix}.lora_{side}.default.weight"
        for layer in range(3)
        for matrix in matrices
        for side in "AB"
    }
    assert {weight.shape[0] for name, weight in trained.items() if "lora_A" in name} == {4}


def test_lora_is_on_every_matrix_of_every_layer_and_on_nothing_else(
    family: str, new_baseline: NewBaseline, new_backbone: Callable[..., Backbone]
) -> None:
    layers = decoder_layers(new_backbone(family).decoder)
    matrices = {name for name, module in layers.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    model = new_baseline("lora", family)
    adapted = decoder_layers(encoder_of(model).reader.decoder)
    trained = trained_state(model.text_encoder)
    assert {name.split(".lora_")[0] for name in trained_state(adapted)} == matrices
    assert len(trained) == len(trained_state(adapted)) == 2 * len(matrices)


@pytest.mark.parametrize(("kind", "attention"), [("lora", "causal"), ("full", "bidirectional")])
def test_the_gradient_reaches_all_that_trains_and_a_step_moves_nothing_else(
    kind: str, attention: str, family: str, new_baseline: NewBaseline
) -> None:
    model = new_baseline(kind, family, attention=attention).train()
    before = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    if kind == "full":
        assert trained == {name for name, _ in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    found = gradients(model, model(model.preprocess(["a text", "b"], prompt=INSTRUCTION))["sentence_embedding"])
    assert found.keys() == trained
    assert [name for name, gradient in found.items() if not gradient.any()] == []
    optimiser.step()
    assert {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])} == trained


def test_a_frozen_one_trains_nothing(new_baseline: NewBaseline) -> None:
    model = new_baseline("frozen").train()
    assert encoder_of(model).trained_weights() == []
    assert not model(model.preprocess(["a"]))["sentence_embedding"].requires_grad


def test_before_training_lora_has_the_vectors_of_the_frozen_reader(
    family: str, new_baseline: NewBaseline, texts: list[str]
) -> None:
    lora, frozen = (new_baseline(kind, family, moved=False) for kind in ("lora", "frozen"))
    np.testing.assert_array_equal(lora.encode(texts, prompt=INSTRUCTION), frozen.encode(texts, prompt=INSTRUCTION))
    moved = new_baseline("lora", family).encode(texts[:2], prompt=INSTRUCTION)
    assert np.abs(moved - frozen.encode(texts[:2], prompt=INSTRUCTION)).max(axis=1).min() > 1e-4


def test_the_adapters_start_is_drawn_from_the_seed_alone(new_config: Callable[..., Any]) -> None:
    from promptembedder.model import BaselineConfig

    def start(seed: int) -> list[Tensor]:
        model = BaselineEmbedder.create(new_config(), BaselineConfig(kind="lora"), device="cpu", seed=seed)
        return model.text_encoder.trained_weights()

    state = torch.get_rng_state()
    one, same, other = start(3), start(3), start(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(one, same, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_trains_is_float32_whatever_the_reader_runs_in(kind: str, new_baseline: NewBaseline) -> None:
    """A bfloat16 weight has eight bits: most steps of an optimiser are rounded away."""
    reader = load_backbone(BackboneConfig(source="random:tiny-llama", dtype="bfloat16"), head=False)
    model = new_baseline(kind, reader=reader, moved=False).train()
    assert {weight.dtype for weight in encoder_of(model).trained_weights()} == {torch.float32}
    before = [weight.detach().clone() for weight in encoder_of(model).trained_weights()]
    found = gradients(model, model(model.preprocess(["a text", "b"]))["sentence_embedding"])
    assert len(found) == len(before)
    assert model(model.preprocess(["a"]))["sentence_embedding"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_learns_a_few_pairs_by_heart(kind: str, new_baseline: NewBaseline) -> None:
    model = new_baseline(kind).train()
    optimiser = torch.optim.Adam(encoder_of(model).trained_weights(), lr=0.01)
    pairs = (["red house", "a song", "the cold river"], ["flat stone", "old lamp", "loud road"])
    loss, losses = MultipleNegativesRankingLoss(model), []
    for _ in range(20):
        value = loss([model.preprocess(texts, prompt=INSTRUCTION) for texts in pairs], None)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]


# -- activations computed twice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "attention"), [("lora", "causal"), ("full", "bidirectional")])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients_from_twice_the_passes(
    family: str, kind: str, attention: str, new_baseline: NewBaseline
) -> None:
    """It needs the layers in training mode; their dropout must stay off (GPT-2 has some)."""
    losses, found, passes = [], [], []
    for checkpointing in (False, True):
        model = new_baseline(kind, family, attention=attention, gradient_checkpointing=checkpointing).train()
        calls: list[int] = []
        for layer in decoder_layers(encoder_of(model).reader.decoder):
            layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        columns = [model.preprocess(texts, prompt=INSTRUCTION) for texts in (["red house", "a"], ["stone", "lamp"])]
        loss = MultipleNegativesRankingLoss(model)(columns, None)
        assert len(calls) == 2 * 3
        loss.backward()
        losses.append(loss.item())
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
        passes.append(len(calls))
    assert passes == [6, 12]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert found[0].keys() == found[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        assert float((found[1][name] - gradient).abs().max()) <= 1e-5 * largest, name


def test_gradient_checkpointing_changes_nothing_in_evaluation(
    family: str, new_baseline: NewBaseline, texts: list[str]
) -> None:
    plain, twice = (new_baseline("lora", family, gradient_checkpointing=value) for value in (False, True))
    twice.train()
    np.testing.assert_array_equal(twice.encode(texts), plain.encode(texts))
    assert not any(module.training for module in twice.modules() if module is not twice)


# -- what is not finite ------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_an_error_and_no_vector(new_baseline: NewBaseline) -> None:
    model = new_baseline("lora")
    with torch.no_grad():
        encoder_of(model).trained_weights()[-1].fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite: the weights contain NaN or inf. Load an earlier checkpoint"):
        model.encode(["a"])
