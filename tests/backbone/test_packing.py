"""Texts in one row, without padding, are read as each is alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen

from promptembedder.backbone import (
    Backbone,
    decoder_layers,
    forward_suffix,
    forward_with_suffix,
    prefill,
    supports_packing,
)
from promptembedder.backbone.packing import Packing, packed_attention, varlen_attention

PROMPT = 4
NewBackbone = Callable[..., Backbone]


@pytest.fixture
def backbone(family: str, new_backbone: NewBackbone) -> Backbone:
    return new_backbone(family)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Left-padded random ids and their mask."""
    width = max(lengths)
    ids = torch.randint(1, 250, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    return ids * mask, mask


def alone(
    backbone: Backbone,
    ids: Tensor,
    mask: Tensor,
    soft: Tensor,
    additions: dict[int, Tensor],
    early_exit_layer: int | None,
) -> tuple[Tensor, list[Tensor]]:
    """The plain reference: text by text, which then has no padding, in two passes."""
    after, hidden = [], []
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        own = slice(row, row + 1)
        columns = slice(mask.shape[1] - length, None)
        states = prefill(
            backbone.decoder, ids[own, columns], mask[own, columns], hidden_layers=1, early_exit_layer=early_exit_layer
        )
        own_additions = {layer: addition[own] for layer, addition in additions.items()}
        after.append(forward_suffix(backbone.decoder, states, soft[own], own_additions).detach())
        hidden.append(states.hidden[0])
    return torch.cat(after), hidden


@pytest.mark.parametrize("early_exit_layer", [None, 1, 2])
# Gemma's sliding window is 8; several of one length are attended to at once; empty texts, first, last and alone
@pytest.mark.parametrize("lengths", [[20, 11, 11, 11, 5, 1, 0], [3, 9, 3, 0], [0, 12], [7, 6, 6]])
def test_texts_packed_are_as_each_alone(lengths: list[int], early_exit_layer: int | None, backbone: Backbone) -> None:
    assert supports_packing(backbone.decoder)
    ids, mask = texts_of(lengths)
    soft = backbone.mean_embedding_norm * nn.functional.normalize(
        normal(len(ids), PROMPT, backbone.dim, seed=1), dim=-1
    )
    additions = {0: 0.5 * soft.flip(1), 2: 0.5 * soft.flip(0)}
    widths: list[torch.Size] = []
    handle = decoder_layers(backbone.decoder)[0].register_forward_hook(lambda *call: widths.append(call[2].shape[:-1]))
    after, hidden = forward_with_suffix(
        backbone.decoder, ids, mask, soft, additions, hidden_layers=1, early_exit_layer=early_exit_layer
    )
    handle.remove()
    assert widths == [(1, sum(lengths) + len(lengths) * PROMPT)]
    expected, hidden_alone = alone(backbone, ids, mask, soft, additions, early_exit_layer)
    torch.testing.assert_close(after, expected, atol=2e-5, rtol=2e-5)
    for row, own in enumerate(hidden_alone):
        torch.testing.assert_close(hidden[row, mask.shape[1] - len(own) :], own, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("early_exit_layer", [None, 1, 2])
def test_the_states_of_packed_texts_are_those_of_each_alone(early_exit_layer: int | None, backbone: Backbone) -> None:
    lengths = [20, 11, 11, 5, 0, 1]
    ids, mask = texts_of(lengths)
    found = prefill(backbone.decoder, ids, mask, hidden_layers=2, early_exit_layer=early_exit_layer)
    for row, length in enumerate(lengths):
        columns = slice(mask.shape[1] - length, None)
        own = prefill(
            backbone.decoder,
            ids[row, None, columns],
            mask[row, None, columns],
            hidden_layers=2,
            early_exit_layer=early_exit_layer,
        )
        torch.testing.assert_close(found.hidden[row, columns], own.hidden[0], atol=2e-5, rtol=2e-5)
        for many, one in zip((*found.keys, *found.values), (*own.keys, *own.values), strict=length > 0):
            torch.testing.assert_close(many[row, :, columns], one[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("prompt", [33, 40])
def test_many_soft_tokens_are_packed_too(prompt: int, backbone: Backbone) -> None:
    """More than attention is written out for."""
    ids, mask = texts_of([12, 9])
    soft = backbone.mean_embedding_norm * nn.functional.normalize(normal(2, prompt, backbone.dim, seed=1), dim=-1)
    after, _ = forward_with_suffix(backbone.decoder, ids, mask, soft)
    torch.testing.assert_close(after, alone(backbone, ids, mask, soft, {}, None)[0], atol=2e-5, rtol=2e-5)


def test_a_decoder_that_mixes_tokens_elsewhere_is_given_padding(backbone: Backbone) -> None:
    """As layers do that look at the token before by a convolution."""
    layer = decoder_layers(backbone.decoder)[1]
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] + inputs[0].roll(1, dims=1), *inputs[1:]))
    assert not supports_packing(backbone.decoder)


def test_a_decoder_that_fails_on_packed_texts_is_given_padding(backbone: Backbone) -> None:
    """As one does whose own code looks at the batch."""

    def wants_three(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) != 3:
            raise ValueError("not as many rows as texts")

    decoder_layers(backbone.decoder)[0].register_forward_pre_hook(wants_three)
    assert not supports_packing(backbone.decoder)
    ids, mask = texts_of([12, 3, 7])
    soft = normal(3, PROMPT, backbone.dim, seed=1)
    assert bool(forward_with_suffix(backbone.decoder, ids, mask, soft)[0].isfinite().all())


def test_a_decoder_with_attention_of_its_own_is_given_padding(backbone: Backbone) -> None:
    backbone.decoder.set_attn_implementation("eager")
    assert not supports_packing(backbone.decoder)


def test_in_half_precision_a_cpu_wants_few_widths_and_each_precision_is_asked_anew(backbone: Backbone) -> None:
    assert supports_packing(backbone.decoder)
    backbone.decoder.to(torch.bfloat16)
    assert not supports_packing(backbone.decoder)
    backbone.decoder.to(torch.float32)
    assert supports_packing(copy.deepcopy(backbone.decoder))


def attended_slowly(
    query: Tensor, key: Tensor, value: Tensor, starts_q: Tensor, starts_k: Tensor, scale: float
) -> Tensor:
    """Text by text and head by head: the queries are the last of their text, and look back."""
    out = torch.zeros_like(query)
    groups = query.shape[1] // key.shape[1]
    for text in range(len(starts_q) - 1):
        first, end = int(starts_q[text]), int(starts_q[text + 1])
        keys, values = (each[int(starts_k[text]) : int(starts_k[text + 1])] for each in (key, value))
        for place in range(first, end):
            seen = len(keys) - (end - 1 - place)
            for head in range(query.shape[1]):
                scores = keys[:seen, head // groups] @ query[place, head] * scale
                out[place, head] = scores.softmax(dim=0) @ values[:seen, head // groups]
    return out


@pytest.mark.parametrize("only_soft", [False, True])
def test_the_kernel_for_texts_of_any_lengths_is_told_where_they_are(
    only_soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a GPU: in its place stands, in plain steps, what torch says that it computes."""

    def plain(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert (window_size, enable_gqa) == ((-1, 0), True)
        assert (cu_seq_q.dtype, cu_seq_k.dtype) == (torch.int32, torch.int32)
        assert (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) == (max_q, max_k)
        return attended_slowly(query, key, value, cu_seq_q, cu_seq_k, scale)

    monkeypatch.setattr(varlen, "varlen_attn", plain)
    packing = Packing([5, 3, 3, 0, 1], suffix_len=2, device=torch.device("cpu"))
    columns = sum(packing.lengths) + packing.suffix_tokens
    query, key, value = (
        normal(1, 6, columns, 8, seed=1),
        normal(1, 2, columns, 8, seed=2),
        normal(1, 2, columns, 8, seed=3),
    )
    query = query[:, :, -packing.suffix_tokens :] if only_soft else query

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        texts, heads, new, width = query.shape
        starts = [torch.arange(texts + 1) * each.shape[2] for each in (query, key)]
        flat = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
        return attended_slowly(*flat, *starts, 0.3).reshape(texts, new, heads, width)

    found = varlen_attention(packing, query, key, value, scaling=0.3)
    torch.testing.assert_close(found, packed_attention(packing, query, key, value, None, attend))
