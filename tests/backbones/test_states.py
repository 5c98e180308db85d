"""Reading a text once and going on from there is the same as reading everything at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from promptembedder.backbones import Backbone, TextStates, joined_states, read_after, read_embeddings, read_text
from promptembedder.nn import left_padded, text_positions

LENGTHS = [5, 20, 0, 1, 11]  # 20 and 11 are longer than Gemma's sliding window of 8
PROMPT = 4
NewBackbone = Callable[..., Backbone]


@pytest.fixture
def backbone(family: str, new_backbone: NewBackbone) -> Backbone:
    return new_backbone(family)


def texts_of(lengths: list[int], *, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Left-padded random ids and their mask; `padding` is the id in padded places."""
    generator = torch.Generator().manual_seed(0)
    width = max(lengths)
    rows = [torch.randint(1, 250, (length,), generator=generator) for length in lengths]
    ids = torch.stack([torch.cat([torch.full((width - len(row),), padding), row]) for row in rows])
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    return ids, mask


def soft_tokens(backbone: Backbone, count: int, *, seed: int = 1) -> Tensor:
    soft = torch.randn(count, PROMPT, backbone.dim, generator=torch.Generator().manual_seed(seed))
    return backbone.table_norm * soft / soft.norm(dim=-1, keepdim=True)


def read_slowly(backbone: Backbone, ids: Tensor, mask: Tensor, soft: Tensor) -> Tensor:
    """The plain reference: each text alone, unpadded, in one pass with its soft tokens; no cache, eager attention."""
    rows = []
    before = backbone.decoder.config._attn_implementation
    backbone.decoder.set_attn_implementation("eager")
    for row, keep, after in zip(ids, mask, soft, strict=True):
        text = backbone.model.get_input_embeddings()(row[keep == 1])
        output = backbone.decoder(inputs_embeds=torch.cat([text, after])[None], use_cache=False)
        rows.append(output.last_hidden_state[0, -PROMPT:])
    backbone.decoder.set_attn_implementation(before)
    return torch.stack(rows)


def test_soft_tokens_after_a_text_that_was_read_equal_one_full_pass(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    after = read_after(backbone.decoder, read_text(backbone.decoder, ids, mask), soft)
    torch.testing.assert_close(after, read_slowly(backbone, ids, mask, soft), atol=1e-5, rtol=0)


def test_soft_tokens_after_a_text_that_was_read_equal_one_full_pass_over_the_padded_batch(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    whole = torch.cat([backbone.model.get_input_embeddings()(ids), soft], dim=1)
    own = torch.cat([mask, torch.ones(len(ids), PROMPT, dtype=torch.long)], dim=1)
    full = backbone.decoder(
        inputs_embeds=whole, attention_mask=own, position_ids=text_positions(own), use_cache=False
    ).last_hidden_state[:, -PROMPT:]
    after = read_after(backbone.decoder, read_text(backbone.decoder, ids, mask), soft)
    torch.testing.assert_close(after, full, atol=1e-5, rtol=0)


def test_the_gradient_of_soft_tokens_equals_that_of_one_full_pass(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    weights = torch.randn(len(ids), PROMPT, backbone.dim, generator=torch.Generator().manual_seed(2))
    fast, slow = (soft_tokens(backbone, len(ids)).requires_grad_() for _ in range(2))
    (weights * read_after(backbone.decoder, read_text(backbone.decoder, ids, mask), fast)).sum().backward()
    (weights * read_slowly(backbone, ids, mask, slow)).sum().backward()
    assert slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5 * float(slow.grad.abs().max()), rtol=0)


def test_any_number_of_continuations_can_follow_the_same_states(backbone: Backbone) -> None:
    states = read_text(backbone.decoder, *texts_of(LENGTHS))
    kept = [tensor.clone() for tensor in (*states.keys, *states.values)]
    one, other = soft_tokens(backbone, len(LENGTHS)), soft_tokens(backbone, len(LENGTHS), seed=2)
    first = read_after(backbone.decoder, states, one)
    read_after(backbone.decoder, states, other)
    assert torch.equal(read_after(backbone.decoder, states, one), first)
    assert all(torch.equal(*pair) for pair in zip((*states.keys, *states.values), kept, strict=True))


def test_what_stands_in_padded_places_changes_nothing(backbone: Backbone) -> None:
    soft = soft_tokens(backbone, len(LENGTHS))
    one, other = (
        read_after(backbone.decoder, read_text(backbone.decoder, *texts_of(LENGTHS, padding=padding)), soft)
        for padding in (0, 77)
    )
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_states_of_a_text_have_no_gradient_even_in_a_decoder_that_is_trained(backbone: Backbone) -> None:
    backbone.model.requires_grad_(True)
    states = read_text(backbone.decoder, *texts_of(LENGTHS))
    assert not any(tensor.requires_grad for tensor in (*states.keys, *states.values, states.last_hidden))


def test_there_is_one_key_and_one_value_a_layer_and_a_text_token(backbone: Backbone) -> None:
    """Per-layer window caches drop old positions, and count padding among them."""
    states = read_text(backbone.decoder, *texts_of(LENGTHS))
    assert len(states.keys) == len(states.values) == backbone.ref.layers
    assert {tensor.shape[2] for tensor in (*states.keys, *states.values)} == {max(LENGTHS)}


def test_the_last_hidden_states_are_those_of_each_text_alone(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    states = read_text(backbone.decoder, ids, mask)
    for row, keep, found in zip(ids, mask, states.last_hidden, strict=True):
        if keep.any():
            slow = backbone.decoder(input_ids=row[keep == 1][None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(found[keep == 1], slow, atol=1e-5, rtol=0)


def test_a_batch_of_empty_texts_reads_the_soft_tokens_alone(backbone: Backbone) -> None:
    ids, mask = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)
    states = read_text(backbone.decoder, ids, mask)
    soft = soft_tokens(backbone, 2)
    assert states == TextStates((), (), mask, states.last_hidden)
    assert states.last_hidden.shape == (2, 0, backbone.dim)
    after = read_after(backbone.decoder, states, soft)
    torch.testing.assert_close(after, read_slowly(backbone, ids, mask, soft), atol=1e-5, rtol=0)


def test_states_of_several_batches_are_as_good_together_as_apart(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    parts = [
        read_text(backbone.decoder, *left_padded(ids[rows], mask[rows]))
        for rows in (slice(2), slice(2, 3), slice(3, 5))
    ]
    joined = joined_states(parts)
    apart = [
        read_after(backbone.decoder, part, soft[rows])
        for part, rows in zip(parts, (slice(2), slice(2, 3), slice(3, 5)), strict=True)
    ]
    torch.testing.assert_close(read_after(backbone.decoder, joined, soft), torch.cat(apart), atol=1e-5, rtol=0)
    assert torch.equal(joined.mask, mask)
    assert joined.last_hidden.shape == (len(LENGTHS), max(LENGTHS), backbone.dim)


def test_states_of_empty_texts_alone_can_be_joined(backbone: Backbone) -> None:
    nothing = torch.zeros(1, 0, dtype=torch.long)
    joined = joined_states([read_text(backbone.decoder, nothing, nothing)] * 2)
    soft = soft_tokens(backbone, 2)
    slow = read_slowly(backbone, torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long), soft)
    torch.testing.assert_close(read_after(backbone.decoder, joined, soft), slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 1]])
def test_padding_may_be_anywhere_in_a_full_pass_over_embeddings(backbone: Backbone, mask: list[int]) -> None:
    embeddings = torch.cat([soft_tokens(backbone, 1), soft_tokens(backbone, 1, seed=2)], dim=1)[:, :6]
    keep = torch.tensor(mask) == 1
    found = read_embeddings(backbone.decoder, embeddings, torch.tensor([mask]))[0, keep]
    slow = backbone.decoder(inputs_embeds=embeddings[:, keep], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(found, slow, atol=1e-5, rtol=0)


def test_a_full_pass_over_embeddings_passes_gradients_on(backbone: Backbone) -> None:
    embeddings = soft_tokens(backbone, 2).requires_grad_()
    read_embeddings(backbone.decoder, embeddings, torch.ones(2, PROMPT, dtype=torch.long))[:, -1, 0].sum().backward()
    assert embeddings.grad is not None
    assert bool((embeddings.grad.abs().sum(dim=-1) > 0).all())


def test_a_bfloat16_decoder_takes_float32_soft_tokens(new_backbone: NewBackbone) -> None:
    backbone = new_backbone("tiny-llama")
    backbone.model.bfloat16()
    soft = soft_tokens(backbone, len(LENGTHS)).requires_grad_()
    after = read_after(backbone.decoder, read_text(backbone.decoder, *texts_of(LENGTHS)), soft)
    after.float().square().sum().backward()
    assert soft.grad is not None
    assert soft.grad.dtype == torch.float32
