"""The prompter runs once for each distinct instruction and state of the weights; what is stale is forgotten."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from promptembedder import PromptEmbedder
from promptembedder.method import AlignmentConfig
from promptembedder.method.soft_token_cache import SoftTokenStore

NewModel = Callable[..., PromptEmbedder]
CPU = torch.device("cpu")
QUERY, DOCUMENT = "find the answer", "represent the document"


@pytest.fixture
def model(new_model: NewModel) -> PromptEmbedder:
    return new_model("tiny-qwen3")


class Runs:
    """Counts the prompter's runs, and the instructions that they read."""

    def __init__(self, model: PromptEmbedder) -> None:
        self.batches: list[int] = []
        model.encoder.prompter.register_forward_hook(lambda _, inputs, __: self.batches.append(len(inputs[0])))

    def since(self) -> list[int]:
        """Batch sizes since the last call."""
        made, self.batches = self.batches, []
        return made


def loss_of(model: PromptEmbedder, *instructions: str) -> Tensor:
    """The loss of a batch with a column for each instruction."""
    columns = [["red house", "x"], ["the house is red", "y"], ["a song", "z and z"]]
    features = [
        model.preprocess(texts, prompt=instruction) for texts, instruction in zip(columns, instructions, strict=True)
    ]
    return MultipleNegativesRankingLoss(model)(features, None)


def test_one_instruction_runs_the_prompter_once_a_step(model: PromptEmbedder) -> None:
    model.train()
    runs = Runs(model)
    loss_of(model, QUERY, QUERY, QUERY).backward()
    assert runs.since() == [1]


def test_two_instructions_run_it_once_each(model: PromptEmbedder) -> None:
    model.train()
    runs = Runs(model)
    loss_of(model, QUERY, DOCUMENT, DOCUMENT).backward()
    assert sum(runs.since()) == 2


def test_after_a_backward_pass_it_runs_again(model: PromptEmbedder) -> None:
    """Gradients may be summed over several batches before a step: the graph of the first is gone by the second."""
    model.train()
    runs = Runs(model)
    loss_of(model, QUERY, QUERY, QUERY).backward()
    once = [weight.grad.clone() for weight in model.encoder.trained_weights()]
    loss_of(model, QUERY, QUERY, QUERY).backward()
    assert runs.since() == [1, 1]
    for weight, before in zip(model.encoder.trained_weights(), once, strict=True):
        torch.testing.assert_close(weight.grad, 2 * before, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("kind", ["fused", "foreach", "plain"])
def test_after_an_optimisers_step_it_runs_again(model: PromptEmbedder, kind: str, clear: bool) -> None:
    """A fused optimiser, the Trainer's default, changes weights without counting it in their versions."""
    flags = {"plain": {"foreach": False}}.get(kind, {kind: True})
    optimiser = torch.optim.AdamW(model.encoder.trained_weights(), lr=0.05, **flags)
    model.train()
    loss_of(model, QUERY, QUERY, QUERY).backward()
    before = model.encode(["a"], prompt=QUERY)
    runs = Runs(model)
    optimiser.step()
    if clear:
        optimiser.zero_grad()
    assert np.abs(model.encode(["a"], prompt=QUERY) - before).max() > 1e-4
    assert runs.since() == [1]


def test_in_evaluation_it_runs_once_until_the_weights_change(model: PromptEmbedder) -> None:
    runs = Runs(model)
    first = model.encode(["a", "b"], prompt=QUERY)
    np.testing.assert_array_equal(model.encode(["a", "b"], prompt=QUERY), first)
    model.encode(["c"], prompt=DOCUMENT)
    assert runs.since() == [1, 1]
    with torch.no_grad():
        model.encoder.alignment.delta.add_(0.1)
    assert np.abs(model.encode(["a", "b"], prompt=QUERY) - first).max() > 1e-4
    assert runs.since() == [1]


def test_instructions_that_are_not_at_hand_are_generated_in_one_batch(model: PromptEmbedder) -> None:
    runs = Runs(model)
    model.encode_instructions(["a"], ["one", "two"])
    model.encode_instructions(["a"], ["three", "one", "four", "two", "three"])
    assert runs.since() == [2, 2]


def test_conditioned_on_the_text_it_runs_for_each_text(new_model: NewModel) -> None:
    model = new_model(with_text=True)
    runs = Runs(model)
    for _ in range(2):
        model.encode(["a", "b", "c"], prompt=QUERY)
    assert runs.since() == [3, 3]


@pytest.mark.parametrize("without_gradient", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("training", [True, False])
def test_training_after_encoding_has_gradients(
    model: PromptEmbedder, training: bool, without_gradient: Callable[[], AbstractContextManager]
) -> None:
    """A tensor made in inference mode must never be part of a graph."""
    with without_gradient():
        model.encode(["a"], prompt=QUERY)
        model.encode_instructions(["a"], [QUERY, DOCUMENT])
        model.train(training)(model.preprocess(["a"], prompt=QUERY))
    model.train(training)
    loss_of(model, QUERY, DOCUMENT, QUERY).backward()
    assert all(weight.grad is not None for weight in model.encoder.trained_weights())


def test_encoding_between_two_steps_does_not_disturb_them(new_model: NewModel) -> None:
    losses = []
    for encode in (False, True):
        model = new_model("tiny-qwen3")
        optimiser = torch.optim.SGD(model.encoder.trained_weights(), lr=0.5)
        for _ in range(3):
            model.train()
            loss = loss_of(model, QUERY, QUERY, DOCUMENT)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if encode:
                model.encode(["a", "b"], prompt=QUERY)
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]


# -- compiled tokens ---------------------------------------------------------------------------------------------------


def test_compiled_tokens_are_the_generated_ones(model: PromptEmbedder) -> None:
    generated = model.encode(["a", "b"], prompt=QUERY)
    model.compile_instructions([QUERY, DOCUMENT, QUERY])
    model.encoder.store.clear()
    runs = Runs(model)
    np.testing.assert_allclose(model.encode(["a", "b"], prompt=QUERY), generated, atol=1e-5)
    assert runs.since() == []
    assert list(model.encoder.parts().compiled) == [QUERY, DOCUMENT]


@pytest.mark.parametrize("prompt", [QUERY, f"  {QUERY}\n"])
@pytest.mark.parametrize("compiled", [QUERY, f"\t{QUERY} "])
def test_blanks_around_an_instruction_do_not_make_another_one(
    model: PromptEmbedder, prompt: str, compiled: str
) -> None:
    """`encode` strips its prompt; what was compiled with a blank at its end was never served."""
    model.compile_instructions([compiled])
    model.encoder.store.clear()
    runs = Runs(model)
    model.encode(["a"], prompt=prompt)
    model.encode_instructions(["a"], [prompt])
    model.soft_tokens(prompt)
    assert runs.since() == []


def test_compiling_keeps_the_mode(model: PromptEmbedder) -> None:
    for training in (True, False):
        model.train(training)
        model.compile_instructions([QUERY])
        assert model.encoder.training == training
        assert not model.encoder.parts().compiled[QUERY].requires_grad


def test_after_a_training_step_compiled_tokens_are_not_served_nor_saved(model: PromptEmbedder) -> None:
    model.compile_instructions([QUERY])
    before = model.encode(["a"], prompt=QUERY)
    optimiser = torch.optim.SGD(model.encoder.trained_weights(), lr=1.0)
    model.train()
    loss_of(model, QUERY, QUERY, QUERY).backward()
    optimiser.step()
    runs = Runs(model)
    assert model.encoder.parts().compiled == {}
    assert np.abs(model.encode(["a"], prompt=QUERY) - before).max() > 1e-4
    assert runs.since() == [1]


def test_compiled_tokens_of_old_weights_do_not_come_back_with_new_ones(model: PromptEmbedder) -> None:
    model.compile_instructions([QUERY])
    with torch.no_grad():
        model.encoder.alignment.delta.add_(0.1)
    assert model.encoder.parts().compiled == {}
    model.compile_instructions([DOCUMENT])
    assert list(model.encoder.parts().compiled) == [DOCUMENT]


def test_in_training_compiled_tokens_are_not_used(model: PromptEmbedder) -> None:
    """They carry no gradient."""
    model.compile_instructions([QUERY])
    model.train()
    loss_of(model, QUERY, QUERY, QUERY).backward()
    assert all(weight.grad is not None for weight in model.encoder.trained_weights())


def copied(model: PromptEmbedder) -> Iterator[PromptEmbedder]:
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("with_graph", [False, True])
def test_a_copy_of_the_model_gives_the_same_vectors(model: PromptEmbedder, with_graph: bool) -> None:
    if with_graph:  # tensors inside a graph can neither be copied nor sent to another process
        model.train()
        loss_of(model, QUERY, QUERY, QUERY)
    vectors = model.encode(["a", "b"], prompt=QUERY)
    if with_graph:
        model.train()
        loss_of(model, QUERY, QUERY, QUERY)
    for other in copied(model):
        np.testing.assert_array_equal(other.encode(["a", "b"], prompt=QUERY), vectors)
        other.train()
        loss_of(other, QUERY, QUERY, QUERY).backward()


def test_a_copy_serves_the_compiled_tokens(model: PromptEmbedder) -> None:
    """A copy's weights count their changes from zero, so its compiled tokens were taken for those of older weights."""
    model.compile_instructions([QUERY])
    vectors = model.encode(["a"], prompt=QUERY)
    for other in copied(model):
        assert list(other.encoder.parts().compiled) == [QUERY]
        runs = Runs(other)
        np.testing.assert_array_equal(other.encode(["a"], prompt=QUERY), vectors)
        assert runs.since() == []


def test_a_copy_does_not_bring_stale_compiled_tokens_back(model: PromptEmbedder) -> None:
    model.compile_instructions([QUERY])
    with torch.no_grad():
        model.encoder.alignment.delta.add_(0.1)
    for other in copied(model):
        assert other.encoder.parts().compiled == {}


# -- the store alone ---------------------------------------------------------------------------------------------------


def counted_up(calls: list[list[str]], device: torch.device = CPU) -> Callable[[list[str]], Tensor]:
    def generate(instructions: list[str]) -> Tensor:
        calls.append(list(instructions))
        return torch.tensor([[[float(len(text))]] for text in instructions], device=device)

    return generate


def test_rows_come_in_the_order_of_the_instructions() -> None:
    store, calls = SoftTokenStore(), []
    rows = store.get(["aaa", "a", "aaa", "aa"], counted_up(calls), [], training=False, device=CPU)
    assert rows.flatten().tolist() == [3.0, 1.0, 3.0, 2.0]
    assert calls == [["aaa", "a", "aa"]]


def test_the_memory_does_not_grow_without_end() -> None:
    store, calls = SoftTokenStore(), []
    many = [f"instruction {number}" for number in range(5000)]
    rows = store.get(many, counted_up(calls), [], training=False, device=CPU)
    assert rows.flatten().tolist() == [float(len(text)) for text in many]
    store.get(many[-3:], counted_up(calls), [], training=False, device=CPU)
    assert len(calls) == 1
    store.get(many[:1], counted_up(calls), [], training=False, device=CPU)
    assert calls[1:] == [many[:1]]


def test_compiled_tokens_follow_the_model_to_its_device() -> None:
    """They lie where they were loaded; beside generated ones on an accelerator they could not be stacked."""
    store, elsewhere = SoftTokenStore(), torch.device("meta")
    store.add_compiled({"a": torch.ones(1, 1)}, [])
    rows = store.get(["a", "b"], counted_up([], elsewhere), [], training=False, device=elsewhere)
    assert (rows.device, rows.shape) == (elsewhere, (2, 1, 1))


def test_with_nothing_to_train_tokens_are_kept_through_training_mode(new_model: NewModel) -> None:
    model = new_model(
        tuning="frozen", alignment=AlignmentConfig(kind="vocabulary"), deep_prompt_interval=0, text_pooling_weight=0.0
    )
    assert model.encoder.trained_weights() == []
    vectors = model.encode(["a"], prompt=QUERY)
    model.train()(model.preprocess(["a"], prompt=QUERY))
    np.testing.assert_array_equal(model.encode(["a"], prompt=QUERY), vectors)
