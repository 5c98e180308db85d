"""The method once more, slow and plain: one text at a time, no cache, no padding, no mask."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from promptembedder import PromptEmbedder
from promptembedder.models import Prompter
from promptembedder.nn import RelaxedTokens, norm_match, relaxation_weights

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
                tokens.append(norm_match(prompter.projection(state), backbone.table_norm))
            else:
                logits = backbone.model(inputs_embeds=sequence, use_cache=False).logits[:, -1]
                weights.append(relaxation_weights(logits, prompter.relaxation))
                tokens.append(backbone.input_scale * weights[-1] @ backbone.input_table)
            sequence = torch.cat([sequence, tokens[-1][:, None]], dim=1)
    generated = torch.stack(tokens, dim=1)
    anchored = prompter.log_gate.exp() * generated + prompter.anchor_start + prompter.anchor_delta
    return RelaxedTokens(anchored, torch.stack(weights, dim=1) if weights else None)


def embedded_slowly(model: PromptEmbedder, texts: Sequence[str], instruction: str) -> Tensor:
    """Unit vectors of the texts under the instruction, each from one full pass over [text; soft tokens]."""
    encoder = model.encoder
    settings, reader = encoder.settings, encoder.reader
    prompt = settings.prompter.template.replace("{instruction}", instruction)
    soft = encoder.align(generated_slowly(encoder.prompter, prompt))[0]
    vectors = []
    with eagerly(reader.decoder):
        for text in texts:
            ids = reader.tokenizer.tokenize([text], max_length=encoder.max_seq_length).ids[0]
            text_inputs = reader.model.get_input_embeddings()(ids)
            parts = [text_inputs, soft] if settings.placement == "suffix" else [soft, text_inputs]
            states = reader.decoder(inputs_embeds=torch.cat(parts)[None], use_cache=False).last_hidden_state[0]
            if settings.placement == "suffix":
                states = states[-len(soft) :]
            elif len(ids):
                states = states[len(soft) :]
            pooled = states.mean(dim=0) if settings.pooling == "mean" else states[-1]
            vectors.append(pooled / pooled.norm())
    return torch.stack(vectors)


@pytest.fixture
def slow_tokens() -> Callable[[Prompter, str], RelaxedTokens]:
    return generated_slowly


@pytest.fixture
def slow_vectors() -> Callable[[PromptEmbedder, Sequence[str], str], Tensor]:
    return embedded_slowly
