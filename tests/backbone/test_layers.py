"""Vectors added to the states that enter a layer, and states kept: there and then, in this thread, nowhere else."""

import copy
import pickle
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from promptembedder.backbone import Backbone
from promptembedder.backbone.layers import add_to_layer_inputs, capture_hidden_state, decoder_layers
from promptembedder.errors import BackboneError

NewBackbone = Callable[..., Backbone]
IDS = torch.arange(1, 7)[None]


@pytest.fixture
def backbone(family: str, new_backbone: NewBackbone) -> Backbone:
    return new_backbone(family)


def states_of(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone.decoder(input_ids=IDS, use_cache=False).last_hidden_state


def addition(backbone: Backbone, *, seed: int = 0) -> Tensor:
    return torch.randn(1, IDS.shape[1], backbone.dim, generator=torch.Generator().manual_seed(seed))


def test_the_layers_of_each_family_are_found_in_their_order(backbone: Backbone) -> None:
    layers = decoder_layers(backbone.decoder)
    assert len(layers) == backbone.identity.layers == 3
    seen: list[int] = []
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, place=place: seen.append(place))
    states_of(backbone)
    assert seen == [0, 1, 2]


def test_a_decoder_without_a_stack_of_layers_is_refused(new_backbone: NewBackbone) -> None:
    decoder = new_backbone("tiny-llama").decoder
    decoder.layers = nn.ModuleList(list(decoder.layers)[:2])
    with pytest.raises(BackboneError, match="LlamaModel has no stack of 3 decoder layers: .* Choose a causal"):
        decoder_layers(decoder)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_addition_enters_its_own_layer_and_no_other(backbone: Backbone, layer: int) -> None:
    entered: list[Tensor] = []
    for each in decoder_layers(backbone.decoder):
        each.register_forward_hook(lambda _, inputs, __: entered.append(inputs[0].clone()))
    states_of(backbone)
    plain = entered.copy()
    entered.clear()
    with add_to_layer_inputs(backbone.decoder, {layer: addition(backbone)}):
        states_of(backbone)
    for place in range(layer):
        assert torch.equal(entered[place], plain[place])
    torch.testing.assert_close(entered[layer], plain[layer] + addition(backbone))


def test_a_short_addition_is_for_the_last_places(backbone: Backbone) -> None:
    whole = torch.cat([torch.zeros(1, IDS.shape[1] - 2, backbone.dim), addition(backbone)[:, -2:]], dim=1)
    found = []
    for each in (whole, whole[:, -2:]):
        with add_to_layer_inputs(backbone.decoder, {1: each}):
            found.append(states_of(backbone))
    torch.testing.assert_close(found[1], found[0])


def test_nothing_is_added_before_or_after(backbone: Backbone) -> None:
    plain = states_of(backbone)
    for seed in range(2):  # the second time the hooks are there already
        with add_to_layer_inputs(backbone.decoder, {1: addition(backbone, seed=seed), 2: addition(backbone)}):
            assert float((states_of(backbone) - plain).abs().max()) > 1e-2
        assert torch.equal(states_of(backbone), plain)


def test_the_same_additions_twice_give_the_same_states(backbone: Backbone) -> None:
    found = []
    for _ in range(3):
        with add_to_layer_inputs(backbone.decoder, {1: addition(backbone)}):
            found.append(states_of(backbone))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nothing_is_left_behind_by_a_pass_that_fails(backbone: Backbone) -> None:
    plain = states_of(backbone)
    with (
        pytest.raises(RuntimeError, match="must match"),
        add_to_layer_inputs(backbone.decoder, {1: addition(backbone)[..., :4]}),
    ):
        states_of(backbone)
    assert torch.equal(states_of(backbone), plain)


def test_no_additions_leave_no_hook(backbone: Backbone) -> None:
    with add_to_layer_inputs(backbone.decoder, {}):
        states_of(backbone)
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(backbone.decoder))


def test_another_thread_reads_without_them(new_backbone: NewBackbone) -> None:
    backbone, elsewhere = new_backbone("tiny-llama"), []
    plain = states_of(backbone)
    with add_to_layer_inputs(backbone.decoder, {1: addition(backbone)}):
        thread = threading.Thread(target=lambda: elsewhere.append(states_of(backbone)))
        thread.start()
        thread.join()
        assert not torch.equal(states_of(backbone), plain)
    assert torch.equal(elsewhere[0], plain)


def test_what_a_layer_hands_on_is_kept_for_this_thread_and_while_asked_for(new_backbone: NewBackbone) -> None:
    backbone = new_backbone("tiny-gemma3")
    slow = backbone.decoder(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    for count in (1, 2):
        with capture_hidden_state(backbone.decoder, count) as kept:
            thread = threading.Thread(target=lambda: states_of(backbone))
            thread.start()
            thread.join()
            assert kept == []
            states_of(backbone)
        states_of(backbone)
        assert len(kept) == 1
        torch.testing.assert_close(kept[0], slow[count])


def test_two_threads_that_come_first_at_once_add_once(
    new_backbone: NewBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no hook and both put one there: from then on every addition counted twice."""
    backbone, register = new_backbone("tiny-llama"), nn.Module.register_forward_pre_hook

    def slowly(module: nn.Module, hook: Callable[..., object]) -> object:
        time.sleep(0.02)
        return register(module, hook)

    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", slowly)

    def enter() -> None:
        with add_to_layer_inputs(backbone.decoder, {1: addition(backbone)}):
            pass

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(layer._forward_pre_hooks) for layer in decoder_layers(backbone.decoder)] == [1, 1, 1]


@pytest.mark.parametrize("made", [copy.deepcopy, lambda backbone: pickle.loads(pickle.dumps(backbone))])
def test_a_copy_has_additions_of_its_own(made: Callable[[Backbone], Backbone], new_backbone: NewBackbone) -> None:
    backbone = new_backbone("tiny-llama")
    plain = states_of(backbone)
    with add_to_layer_inputs(backbone.decoder, {1: addition(backbone)}):
        changed = states_of(backbone)
        other = made(backbone)
        assert torch.equal(states_of(other), plain)
    with add_to_layer_inputs(other.decoder, {1: addition(backbone)}):
        assert torch.equal(states_of(other), changed)
        assert torch.equal(states_of(backbone), plain)
