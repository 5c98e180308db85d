"""The method once more, slow and plain: one text at a time, no cache, no padding, no mask."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.backbone import Backbone
from promptembedder.method import (
    InstructionPooling,
    Prompter,
    RelaxedTokens,
    SoftTokenEncoder,
    relaxation_weights,
    rescale_norm,
)
from promptembedder.model import BaselineConfig, BaselineEmbedder

TEXTS = [
    "a",
    "The quick brown fox jumps over the lazy dog, twice.",
    "",
    "übergroße Füße",
    "<|end|> is text",
    "short text",
]


@pytest.fixture
def texts() -> list[str]:
    """Of many lengths: one empty, some longer than Gemma's sliding window, one that spells a special token."""
    return list(TEXTS)


@contextmanager
def eagerly(model: PreTrainedModel) -> Iterator[None]:
    """Attention written out, whatever `model` uses otherwise."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def generated_slowly(prompter: Prompter, prompt: str) -> RelaxedTokens:
    """Relaxed tokens from the growing sequence, read anew for each of them."""
    backbone = prompter.backbone
    ids = backbone.tokenizer.tokenize([prompt], max_length=10_000).ids
    sequence = backbone.model.get_input_embeddings()(ids)
    tokens, weights = [], []
    with eagerly(backbone.model):
        for _ in range(prompter.num_soft_tokens):
            if prompter.projection is not None:
                state = backbone.decoder(inputs_embeds=sequence, use_cache=False).last_hidden_state[:, -1]
                tokens.append(rescale_norm(prompter.projection(state), backbone.mean_embedding_norm))
            else:
                logits = backbone.model(inputs_embeds=sequence, use_cache=False).logits[:, -1]
                weights.append(relaxation_weights(logits, prompter.relaxation))
                tokens.append(backbone.embedding_scale * weights[-1] @ backbone.input_embeddings)
            sequence = torch.cat([sequence, tokens[-1][:, None]], dim=1)
    generated = torch.stack(tokens, dim=1)
    anchored = prompter.log_scale.exp() * generated + prompter.init_embeddings + prompter.soft_prompt_delta
    return RelaxedTokens(anchored, torch.stack(weights, dim=1) if weights else None)


@contextmanager
def added_by_hand(decoder: PreTrainedModel, additions: Mapping[int, Tensor]) -> Iterator[None]:
    """Add to what the layer below hands on, at its last places; not by the way of the source."""
    layers = decoder.h if hasattr(decoder, "h") else decoder.layers

    def add_to(addition: Tensor) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: Any, states: Tensor) -> Tensor:
            return torch.cat([states[:, : -len(addition)], states[:, -len(addition) :] + addition], dim=1)

        return hook

    handles = [layers[i - 1].register_forward_hook(add_to(addition)) for i, addition in additions.items()]
    yield
    for handle in handles:
        handle.remove()


def vector_slowly(encoder: SoftTokenEncoder, text: str, soft: Tensor) -> Tensor:
    """Unit vector of one text with the soft tokens [prompt, levels * dim], from one full pass over both."""
    settings, reader = encoder.config, encoder.reader
    count, width = len(soft), reader.dim
    inputs, deeper = soft[:, :width], soft[:, width:]
    deep_layers = [
        layer
        for layer in range(1, reader.identity.layers)
        if settings.deep_prompt_interval and layer % settings.deep_prompt_interval == 0
    ]
    additions = {layer: deeper[:, i * width : (i + 1) * width] for i, layer in enumerate(deep_layers)}
    query = deeper[:, len(deep_layers) * width :].flatten()
    batch = reader.tokenizer.tokenize([text], max_length=encoder.max_seq_length)
    ids, start = batch.ids[0], int((batch.text_mask[0] == 0).sum())
    text_inputs = reader.model.get_input_embeddings()(ids)
    suffix = settings.placement == "suffix"
    parts = [text_inputs, inputs] if suffix else [text_inputs[:start], inputs, text_inputs[start:]]
    with eagerly(reader.decoder), added_by_hand(reader.decoder, additions):
        states = reader.decoder(inputs_embeds=torch.cat(parts)[None], use_cache=False).last_hidden_state[0]
    if settings.placement == "suffix":
        states = states[-count:]
    elif len(ids) > start:
        states = states[start + count :]
    else:
        states = states[start:]
    pooled = states.mean(dim=0) if settings.pooling == "mean" else states[-1]
    pooled = pooled / pooled.norm()
    if encoder.text_pooling is not None and (settings.instruction_heads or not encoder.training) and len(ids) > start:
        layers = settings.text_pooling_layer or round(0.3 * reader.identity.layers)
        with eagerly(reader.decoder):
            read = reader.decoder(inputs_embeds=text_inputs[None], use_cache=False, output_hidden_states=True)
        own = read.hidden_states[layers][0, start:].mean(dim=0) - encoder.text_pooling.centre
        own = own - encoder.text_pooling.shared @ (encoder.text_pooling.shared.T @ own)
        if settings.instruction_heads:
            own = instructed_slowly(encoder.text_pooling.instructed, read.hidden_states[layers][0, start:], own, query)
        pooled = pooled + encoder.text_pooling.weight * own / own.norm()
    return pooled / pooled.norm()


def instructed_slowly(pooling: InstructionPooling, states: Tensor, mean: Tensor, query: Tensor) -> Tensor:
    """Instruction pooling of one text, one head and one token at a time."""
    size, units = 64, 512
    tokens = (states - pooling.centre) @ pooling.directions
    found = []
    for head in range(pooling.heads):
        of_head = slice(head * size, (head + 1) * size)
        scores = torch.stack([query[of_head] @ (token @ pooling.key[:, of_head]) for token in tokens]) / 8
        found.append(
            sum(w * (token @ pooling.value[:, of_head]) for w, token in zip(scores.softmax(0), tokens, strict=True))
        )
    factors, offsets = query[pooling.heads * size :][: 2 * units].chunk(2)
    mean = mean / mean.pow(2).mean().sqrt()
    hidden = mean @ pooling.mean + pooling.mean_bias + torch.cat(found) @ pooling.attended
    return torch.nn.functional.gelu(hidden * (1 + factors) + offsets) @ pooling.out + pooling.out_bias


def embedded_slowly(model: PromptEmbedder, texts: Sequence[str], instruction: str) -> Tensor:
    """Unit vectors of the texts under the instruction, each from one full pass over [text; soft tokens]."""
    encoder = model.encoder
    prompt = encoder.config.prompter.template.replace("{instruction}", instruction)
    soft = encoder.align(generated_slowly(encoder.prompter, prompt))[0]
    return torch.stack([vector_slowly(encoder, text, soft) for text in texts])


@pytest.fixture
def slow_tokens() -> Callable[[Prompter, str], RelaxedTokens]:
    return generated_slowly


@pytest.fixture
def slow_vectors() -> Callable[[PromptEmbedder, Sequence[str], str], Tensor]:
    return embedded_slowly


@pytest.fixture
def slow_vector() -> Callable[[SoftTokenEncoder, str, Tensor], Tensor]:
    return vector_slowly


@pytest.fixture
def new_baseline(new_config: Callable[..., ModelConfig]) -> Callable[..., BaselineEmbedder]:
    """Make a tiny baseline: `new_baseline("static", "tiny-gpt2", model={"pooling": "last"}, **fields)`.

    Its trained weights are moved away from their start, unless `moved=False`.
    """

    def made(
        kind: str,
        name: str = "tiny-llama",
        *,
        model: Mapping[str, Any] | None = None,
        reader: Backbone | None = None,
        moved: bool = True,
        **changes: Any,
    ) -> BaselineEmbedder:
        config = new_config(name, **(model or {}))
        baseline = BaselineConfig(kind=kind, lora_rank=4, lora_alpha=8, **changes)
        made = BaselineEmbedder.create(config, baseline, reader=reader, device="cpu")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in made.text_encoder.trained_weights() if moved else ():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        return made.eval()

    return made
