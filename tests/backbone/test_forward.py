"""Reading a text once and going on from there is the same as reading everything at once."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from promptembedder.backbone import (
    Backbone,
    TextCache,
    decoder_layers,
    forward_embeddings,
    forward_suffix,
    forward_suffixes,
    forward_tokens,
    forward_with_suffix,
    gather_text_caches,
    hidden_states_at,
    left_pad,
    prefill,
    supports_packing,
    text_positions,
)

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
    return backbone.mean_embedding_norm * soft / soft.norm(dim=-1, keepdim=True)


def additions_of(backbone: Backbone, count: int, layers: tuple[int, ...] = (0, 2)) -> dict[int, Tensor]:
    """About as large as the states they are added to, so that a wrong one shows."""
    return {layer: 0.5 * soft_tokens(backbone, count, seed=10 + layer) for layer in layers}


@contextmanager
def added_by_hand(backbone: Backbone, additions: Mapping[int, Tensor]) -> Iterator[None]:
    """Add to what the module below hands on, at its last places: not the way of the source, and for one text."""
    decoder = backbone.decoder
    layers = decoder.h if hasattr(decoder, "h") else decoder.layers

    def add_to(addition: Tensor) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            changed = torch.cat([states[:, :-PROMPT], states[:, -PROMPT:] + addition], dim=1)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [layers[i - 1].register_forward_hook(add_to(addition)) for i, addition in additions.items() if i]
    yield
    for handle in handles:
        handle.remove()


def read_slowly(
    backbone: Backbone, ids: Tensor, mask: Tensor, soft: Tensor, additions: Mapping[int, Tensor] | None = None
) -> Tensor:
    """The plain reference: each text alone, unpadded, in one pass with its soft tokens; no cache, eager attention."""
    rows = []
    before = backbone.decoder.config._attn_implementation
    backbone.decoder.set_attn_implementation("eager")
    for i, (row, keep, after) in enumerate(zip(ids, mask, soft, strict=True)):
        own = {layer: addition[i] for layer, addition in (additions or {}).items()}
        text = backbone.model.get_input_embeddings()(row[keep == 1])
        # nothing but GPT-2's positions comes between the input and layer 0, and they are added too
        inputs = torch.cat([text, after + own.get(0, 0.0)])
        with added_by_hand(backbone, own):
            output = backbone.decoder(inputs_embeds=inputs[None], use_cache=False)
        rows.append(output.last_hidden_state[0, -PROMPT:])
    backbone.decoder.set_attn_implementation(before)
    return torch.stack(rows)


def test_soft_tokens_after_a_text_that_was_read_equal_one_full_pass(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    after = forward_suffix(backbone.decoder, prefill(backbone.decoder, ids, mask), soft)
    torch.testing.assert_close(after, read_slowly(backbone, ids, mask, soft), atol=1e-5, rtol=0)


def test_soft_tokens_after_a_text_that_was_read_equal_one_full_pass_over_the_padded_batch(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    whole = torch.cat([backbone.model.get_input_embeddings()(ids), soft], dim=1)
    own = torch.cat([mask, torch.ones(len(ids), PROMPT, dtype=torch.long)], dim=1)
    full = backbone.decoder(
        inputs_embeds=whole, attention_mask=own, position_ids=text_positions(own), use_cache=False
    ).last_hidden_state[:, -PROMPT:]
    after = forward_suffix(backbone.decoder, prefill(backbone.decoder, ids, mask), soft)
    torch.testing.assert_close(after, full, atol=1e-5, rtol=0)


def test_the_gradient_of_soft_tokens_equals_that_of_one_full_pass(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    weights = torch.randn(len(ids), PROMPT, backbone.dim, generator=torch.Generator().manual_seed(2))
    fast, slow = (soft_tokens(backbone, len(ids)).requires_grad_() for _ in range(2))
    (weights * forward_suffix(backbone.decoder, prefill(backbone.decoder, ids, mask), fast)).sum().backward()
    (weights * read_slowly(backbone, ids, mask, slow)).sum().backward()
    assert slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5 * float(slow.grad.abs().max()), rtol=0)


def test_any_number_of_continuations_can_follow_the_same_states(backbone: Backbone) -> None:
    states = prefill(backbone.decoder, *texts_of(LENGTHS))
    kept = [tensor.clone() for tensor in (*states.keys, *states.values)]
    one, other = soft_tokens(backbone, len(LENGTHS)), soft_tokens(backbone, len(LENGTHS), seed=2)
    first = forward_suffix(backbone.decoder, states, one)
    forward_suffix(backbone.decoder, states, other)
    assert torch.equal(forward_suffix(backbone.decoder, states, one), first)
    assert all(torch.equal(*pair) for pair in zip((*states.keys, *states.values), kept, strict=True))


@pytest.mark.parametrize("lengths", [LENGTHS, [4, 2, 0, 1, 3], [0, 0]])  # beyond Gemma's window, within it, nothing
@pytest.mark.parametrize("layers", [(), (0, 2)])
def test_continuations_side_by_side_are_each_as_if_alone(
    lengths: list[int], layers: tuple[int, ...], backbone: Backbone
) -> None:
    """There are more of them than one pass takes, so that they are also in several passes."""
    count, looked_at = 45, (0, 1, 31, 32, 44)
    ids, mask = texts_of(lengths) if any(lengths) else (torch.zeros(2, 0, dtype=torch.long),) * 2
    states = prefill(backbone.decoder, ids, mask)
    soft, additions = soft_tokens(backbone, count), additions_of(backbone, count, layers)
    together = forward_suffixes(backbone.decoder, states, soft, additions)
    assert len(together) == count
    for i in looked_at:
        own = {layer: addition[i].expand(len(ids), -1, -1) for layer, addition in additions.items()}
        alone = forward_suffix(backbone.decoder, states, soft[i].expand(len(ids), -1, -1), own)
        torch.testing.assert_close(together[i], alone, atol=2e-5, rtol=0)


def test_a_text_and_what_follows_it_in_one_pass_are_as_in_two(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft, additions = soft_tokens(backbone, len(LENGTHS)), additions_of(backbone, len(LENGTHS))
    states = prefill(backbone.decoder, ids, mask, hidden_layers=2)
    after, hidden = forward_with_suffix(backbone.decoder, ids, mask, soft, additions, hidden_layers=2)
    torch.testing.assert_close(
        after, forward_suffix(backbone.decoder, states, soft, additions).detach(), atol=1e-5, rtol=1e-5
    )
    present = mask.bool()
    torch.testing.assert_close(hidden[present], states.hidden[present], atol=1e-5, rtol=1e-5)


@contextmanager
def texts_left_at(backbone: Backbone, early_exit_layer: int) -> Iterator[None]:
    """Keep the text states unchanged from `early_exit_layer` on in a full pass over text and PROMPT soft tokens."""
    layers = decoder_layers(backbone.decoder)

    def keep_text(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        left = torch.cat([inputs[0][:, :-PROMPT], states[:, -PROMPT:]], dim=1)
        return (left, *output[1:]) if isinstance(output, tuple) else left

    handles = [layer.register_forward_hook(keep_text) for layer in list(layers)[early_exit_layer:]]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("early_exit_layer", [1, 2, 3])
def test_texts_that_leave_at_a_layer_are_seen_by_deeper_ones_as_they_were_there(
    early_exit_layer: int, backbone: Backbone
) -> None:
    ids, mask = texts_of(LENGTHS)
    weights = torch.randn(len(ids), PROMPT, backbone.dim, generator=torch.Generator().manual_seed(2))
    fast, slow = (soft_tokens(backbone, len(ids)).requires_grad_() for _ in range(2))
    additions = additions_of(backbone, len(ids), (2,))
    states = prefill(backbone.decoder, ids, mask, early_exit_layer=early_exit_layer)
    after = forward_suffix(backbone.decoder, states, fast, additions)
    with texts_left_at(backbone, early_exit_layer):
        full = read_slowly(backbone, ids, mask, slow, additions)
    torch.testing.assert_close(after, full, atol=2e-5, rtol=0)
    (weights * after).sum().backward()
    (weights * full).sum().backward()
    assert slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5 * float(slow.grad.abs().max()), rtol=0)


@pytest.mark.parametrize("early_exit_layer", [1, 2, 3])
@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6], [4, 2, 0, 1, 3]])  # padded and not: without padding no mask
def test_texts_that_leave_at_a_layer_and_what_follows_in_one_pass_are_as_in_two(
    lengths: list[int], early_exit_layer: int, backbone: Backbone
) -> None:
    ids, mask = texts_of(lengths)
    soft, additions = soft_tokens(backbone, len(lengths)), additions_of(backbone, len(lengths))
    states = prefill(backbone.decoder, ids, mask, hidden_layers=1, early_exit_layer=early_exit_layer)
    after, hidden = forward_with_suffix(
        backbone.decoder, ids, mask, soft, additions, hidden_layers=1, early_exit_layer=early_exit_layer
    )
    torch.testing.assert_close(
        after, forward_suffix(backbone.decoder, states, soft, additions).detach(), atol=1e-5, rtol=1e-5
    )
    present = mask.bool()
    torch.testing.assert_close(hidden[present], states.hidden[present], atol=1e-5, rtol=1e-5)


def test_leaving_before_the_last_layer_changes_nothing_and_before_an_earlier_one_does(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    plain, last, early = (
        forward_suffix(backbone.decoder, prefill(backbone.decoder, ids, mask, early_exit_layer=layer), soft)
        for layer in (None, 2, 1)
    )
    torch.testing.assert_close(last, plain, atol=1e-6, rtol=0)
    assert float((early - plain).abs().max()) > 0.01


def test_a_layer_does_no_more_than_keys_and_values_of_a_text_that_has_left(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    prefill(backbone.decoder, ids, mask, early_exit_layer=2)  # from here on its layers can be ended
    assert supports_packing(backbone.decoder)
    multiplied: list[int] = []
    for layer in decoder_layers(backbone.decoder):
        layer.mlp.register_forward_hook(lambda *call: multiplied.append(call[2].shape[:-1].numel()))
    prefill(backbone.decoder, ids, mask, early_exit_layer=1)
    assert multiplied == [sum(LENGTHS)]
    multiplied.clear()
    soft = len(ids) * PROMPT
    forward_with_suffix(backbone.decoder, ids, mask, soft_tokens(backbone, len(ids)), early_exit_layer=1)
    assert multiplied == [sum(LENGTHS) + soft, soft, soft]  # padding is left out, too


def test_no_queries_are_made_of_a_text_that_has_left(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    layers = decoder_layers(backbone.decoder)

    def products(early_exit_layer: int) -> int:
        with FlopCounterMode(display=False) as counted:
            prefill(backbone.decoder, ids, mask, early_exit_layer=early_exit_layer)
        by_operation = counted.get_flop_counts()["Global"]
        return sum(by_operation.get(operation, 0) for operation in (torch.ops.aten.mm, torch.ops.aten.addmm))

    assert supports_packing(backbone.decoder)
    whole = products(len(layers)) // len(layers)
    # Phi-3 and GPT-2 have one map for all three
    names = ("k_proj", "v_proj", "qkv_proj", "c_attn")
    maps = sum(part.weight.numel() for name, part in layers[0].named_modules() if name.endswith(names))
    assert products(1) == whole + (len(layers) - 1) * 2 * sum(LENGTHS) * maps


def test_a_copy_of_a_decoder_that_was_left_early_computes_with_its_own_weights(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    before = prefill(backbone.decoder, ids, mask, early_exit_layer=1).keys
    for copied in (copy.deepcopy(backbone.decoder), pickle.loads(pickle.dumps(backbone.decoder))):
        with torch.no_grad():
            for weight in backbone.decoder.parameters():
                weight.mul_(2)
        after = prefill(copied, ids, mask, early_exit_layer=1).keys
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
        with torch.no_grad():
            for weight in backbone.decoder.parameters():
                weight.div_(2)


def test_what_stands_in_padded_places_changes_nothing(backbone: Backbone) -> None:
    soft = soft_tokens(backbone, len(LENGTHS))
    one, other = (
        forward_suffix(backbone.decoder, prefill(backbone.decoder, *texts_of(LENGTHS, padding=padding)), soft)
        for padding in (0, 77)
    )
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_states_of_a_text_have_no_gradient_even_in_a_decoder_that_is_trained(backbone: Backbone) -> None:
    backbone.model.requires_grad_(True)
    states = prefill(backbone.decoder, *texts_of(LENGTHS))
    assert not any(tensor.requires_grad for tensor in (*states.keys, *states.values, states.hidden))


def test_there_is_one_key_and_one_value_a_layer_and_a_text_token(backbone: Backbone) -> None:
    """Per-layer window caches drop old positions, and count padding among them."""
    states = prefill(backbone.decoder, *texts_of(LENGTHS))
    assert len(states.keys) == len(states.values) == backbone.identity.layers
    assert {tensor.shape[2] for tensor in (*states.keys, *states.values)} == {max(LENGTHS)}


def test_the_last_hidden_states_are_those_of_each_text_alone(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    states = prefill(backbone.decoder, ids, mask)
    for row, keep, found in zip(ids, mask, states.hidden, strict=True):
        if keep.any():
            slow = backbone.decoder(input_ids=row[keep == 1][None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(found[keep == 1], slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_states_after_fewer_layers_are_those_of_each_text_alone(layers: int, backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    states = prefill(backbone.decoder, ids, mask, hidden_layers=layers)
    for row, keep, found in zip(ids, mask, states.hidden, strict=True):
        if keep.any():
            slow = backbone.decoder(input_ids=row[keep == 1][None], use_cache=False, output_hidden_states=True)
            torch.testing.assert_close(found[keep == 1], slow.hidden_states[layers][0], atol=1e-5, rtol=0)
    assert not states.hidden.requires_grad
    final = prefill(backbone.decoder, ids, mask)
    assert all(torch.equal(*pair) for pair in zip(final.keys, states.keys, strict=True))
    assert not torch.equal(final.hidden, states.hidden)


@pytest.mark.parametrize("layers", [1, 3])
def test_states_after_the_first_layers_need_no_others(layers: int, backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    expected = prefill(backbone.decoder, ids, mask, hidden_layers=layers).hidden
    ran: list[int] = []
    for place, layer in enumerate(decoder_layers(backbone.decoder)):
        layer.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
    found = hidden_states_at(backbone.decoder, ids, mask, layers=layers)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    assert ran == list(range(layers))
    again = prefill(backbone.decoder, ids, mask, hidden_layers=layers).hidden
    assert torch.equal(again, expected)
    assert hidden_states_at(backbone.decoder, ids[:, :0], mask[:, :0], layers=1).shape == (len(ids), 0, backbone.dim)


def test_a_batch_of_empty_texts_reads_the_soft_tokens_alone(backbone: Backbone) -> None:
    ids, mask = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)
    states = prefill(backbone.decoder, ids, mask)
    soft = soft_tokens(backbone, 2)
    assert states == TextCache((), (), mask, states.hidden)
    assert states.hidden.shape == (2, 0, backbone.dim)
    after = forward_suffix(backbone.decoder, states, soft)
    torch.testing.assert_close(after, read_slowly(backbone, ids, mask, soft), atol=1e-5, rtol=0)


def test_states_of_several_batches_are_as_good_together_as_apart(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    soft = soft_tokens(backbone, len(ids))
    parts = [
        prefill(backbone.decoder, *left_pad(ids[rows], mask[rows])) for rows in (slice(2), slice(2, 3), slice(3, 5))
    ]
    joined = gather_text_caches(parts, [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)])
    apart = [
        forward_suffix(backbone.decoder, part, soft[rows])
        for part, rows in zip(parts, (slice(2), slice(2, 3), slice(3, 5)), strict=True)
    ]
    torch.testing.assert_close(forward_suffix(backbone.decoder, joined, soft), torch.cat(apart), atol=1e-5, rtol=0)
    assert torch.equal(joined.mask, mask)
    assert joined.hidden.shape == (len(LENGTHS), max(LENGTHS), backbone.dim)
    rows = [(2, 1), (0, 0), (0, 0), (1, 0)]  # in another order, one of them twice, one left out
    found = forward_suffix(backbone.decoder, gather_text_caches(parts, rows), soft[[4, 0, 0, 2]])
    torch.testing.assert_close(found, torch.cat(apart)[[4, 0, 0, 2]], atol=1e-5, rtol=0)


def test_states_of_empty_texts_alone_can_be_joined(backbone: Backbone) -> None:
    nothing = torch.zeros(1, 0, dtype=torch.long)
    joined = gather_text_caches([prefill(backbone.decoder, nothing, nothing)] * 2, [(0, 0), (1, 0)])
    soft = soft_tokens(backbone, 2)
    slow = read_slowly(backbone, torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long), soft)
    torch.testing.assert_close(forward_suffix(backbone.decoder, joined, soft), slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 1]])
def test_padding_may_be_anywhere_in_a_full_pass_over_embeddings(backbone: Backbone, mask: list[int]) -> None:
    embeddings = torch.cat([soft_tokens(backbone, 1), soft_tokens(backbone, 1, seed=2)], dim=1)[:, :6]
    keep = torch.tensor(mask) == 1
    found = forward_embeddings(backbone.decoder, embeddings, torch.tensor([mask]))[0, keep]
    slow = backbone.decoder(inputs_embeds=embeddings[:, keep], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(found, slow, atol=1e-5, rtol=0)


def test_a_full_pass_over_embeddings_passes_gradients_on(backbone: Backbone) -> None:
    embeddings = soft_tokens(backbone, 2).requires_grad_()
    forward_embeddings(backbone.decoder, embeddings, torch.ones(2, PROMPT, dtype=torch.long))[:, -1, 0].sum().backward()
    assert embeddings.grad is not None
    assert bool((embeddings.grad.abs().sum(dim=-1) > 0).all())


def test_a_bfloat16_decoder_takes_float32_soft_tokens(new_backbone: NewBackbone) -> None:
    backbone = new_backbone("tiny-llama")
    backbone.model.bfloat16()
    soft = soft_tokens(backbone, len(LENGTHS)).requires_grad_()
    after = forward_suffix(backbone.decoder, prefill(backbone.decoder, *texts_of(LENGTHS)), soft)
    after.float().square().sum().backward()
    assert soft.grad is not None
    assert soft.grad.dtype == torch.float32


# -- additions to the states of deeper layers -------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(1,), (2,), (0, 1, 2)])
def test_additions_after_a_text_that_was_read_equal_one_full_pass_with_them_made_by_hand(
    backbone: Backbone, layers: tuple[int, ...]
) -> None:
    ids, mask = texts_of(LENGTHS)
    soft, additions = soft_tokens(backbone, len(ids)), additions_of(backbone, len(ids), layers)
    states = prefill(backbone.decoder, ids, mask)
    after = forward_suffix(backbone.decoder, states, soft, additions)
    torch.testing.assert_close(after, read_slowly(backbone, ids, mask, soft, additions), atol=1e-5, rtol=0)
    assert float((after - forward_suffix(backbone.decoder, states, soft)).abs().amax(dim=(1, 2)).min()) > 1e-3


def test_the_gradient_of_additions_equals_that_of_one_full_pass(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    weights = torch.randn(len(ids), PROMPT, backbone.dim, generator=torch.Generator().manual_seed(2))
    leaves = []
    for read in ("fast", "slow"):
        soft = soft_tokens(backbone, len(ids)).requires_grad_()
        additions = {layer: each.requires_grad_() for layer, each in additions_of(backbone, len(ids)).items()}
        if read == "fast":
            after = forward_suffix(backbone.decoder, prefill(backbone.decoder, ids, mask), soft, additions)
        else:
            after = read_slowly(backbone, ids, mask, soft, additions)
        (weights * after).sum().backward()
        leaves.append([soft, *additions.values()])
    for fast, slow in zip(*leaves, strict=True):
        assert slow.grad is not None
        assert fast.grad is not None
        assert float(slow.grad.abs().max()) > 1e-3
        torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5 * float(slow.grad.abs().max()), rtol=0)


def test_additions_leave_the_states_of_the_text_alone(backbone: Backbone) -> None:
    """Other instructions go on from the same states, and reading another text after them must not see the additions."""
    ids, mask = texts_of(LENGTHS)
    states = prefill(backbone.decoder, ids, mask)
    kept = [tensor.clone() for tensor in (*states.keys, *states.values)]
    soft = soft_tokens(backbone, len(ids))
    plain = forward_suffix(backbone.decoder, states, soft)
    forward_suffix(backbone.decoder, states, soft, additions_of(backbone, len(ids)))
    assert all(torch.equal(*pair) for pair in zip((*states.keys, *states.values), kept, strict=True))
    again = prefill(backbone.decoder, ids, mask)
    assert all(torch.equal(*pair) for pair in zip((*again.keys, *again.values), kept, strict=True))
    assert torch.equal(forward_suffix(backbone.decoder, states, soft), plain)


def test_additions_follow_a_batch_of_empty_texts_too(backbone: Backbone) -> None:
    ids, mask = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)
    soft, additions = soft_tokens(backbone, 2), additions_of(backbone, 2)
    after = forward_suffix(backbone.decoder, prefill(backbone.decoder, ids, mask), soft, additions)
    torch.testing.assert_close(after, read_slowly(backbone, ids, mask, soft, additions), atol=1e-5, rtol=0)


# -- one plain pass over tokens ---------------------------------------------------------------------------------------

SHORT = [5, 3, 0, 1, 4]  # within Gemma's window, so that everything may look at everything


def with_last_token_changed(ids: Tensor) -> Tensor:
    return torch.cat([ids[:, :-1], (ids[:, -1:] + 7) % 250], dim=1)


def seen_by_all(backbone: Backbone, row: Tensor) -> Tensor:
    """The plain reference: one unpadded text, every token of which may look at every other."""
    before = backbone.decoder.config._attn_implementation
    backbone.decoder.set_attn_implementation("eager")
    everything = torch.zeros(1, 1, len(row), len(row))  # what eager attention adds to its scores: nothing
    states = backbone.decoder(input_ids=row[None], attention_mask=everything, use_cache=False).last_hidden_state[0]
    backbone.decoder.set_attn_implementation(before)
    return states


def test_a_causal_pass_over_tokens_is_that_of_each_text_alone(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    found = forward_tokens(backbone.decoder, ids, mask, bidirectional=False)
    for row, keep, states in zip(ids, mask, found, strict=True):
        if keep.any():
            slow = backbone.decoder(input_ids=row[keep == 1][None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(states[keep == 1], slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("trains", [False, True])
def test_a_bidirectional_pass_lets_every_token_look_at_its_whole_text(backbone: Backbone, trains: bool) -> None:
    backbone.model.requires_grad_(trains)
    ids, mask = texts_of(SHORT)
    found = forward_tokens(backbone.decoder, ids, mask, bidirectional=True)
    for row, keep, states in zip(ids, mask, found, strict=True):
        if keep.any():
            slow = seen_by_all(backbone, row[keep == 1])
            torch.testing.assert_close(states[keep == 1], slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("length", [6, 40])
def test_the_last_token_changes_the_first_state_if_and_only_if_it_may_be_seen(
    backbone: Backbone, trains: bool, length: int
) -> None:
    """Texts of one length need no mask; in training, the attention for few queries took that for a causal pass."""
    backbone.model.requires_grad_(trains)
    ids, mask = texts_of([length, length])
    for bidirectional in (True, False):
        one, other = (
            forward_tokens(backbone.decoder, some, mask, bidirectional=bidirectional)[:, 0].detach()
            for some in (ids, with_last_token_changed(ids))
        )
        assert (float((one - other).abs().max()) > 1e-4) == bidirectional


def test_a_bidirectional_pass_does_not_make_the_next_one_bidirectional(backbone: Backbone) -> None:
    ids, mask = texts_of(LENGTHS)
    before = forward_tokens(backbone.decoder, ids, mask, bidirectional=False)
    forward_tokens(backbone.decoder, ids, mask, bidirectional=True)
    assert torch.equal(forward_tokens(backbone.decoder, ids, mask, bidirectional=False), before)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_pass_over_tokens_takes_empty_texts_and_passes_gradients_on(backbone: Backbone, bidirectional: bool) -> None:
    nothing = torch.zeros(2, 0, dtype=torch.long)
    empty = forward_tokens(backbone.decoder, nothing, nothing, bidirectional=bidirectional)
    assert empty.shape == (2, 0, backbone.dim)
    backbone.model.requires_grad_(True)
    ids, mask = texts_of(LENGTHS)
    forward_tokens(backbone.decoder, ids, mask, bidirectional=bidirectional)[mask == 1].square().sum().backward()
    without = [name for name, weight in backbone.decoder.named_parameters() if weight.grad is None]
    assert without == []
