"""Laws of the measured step: it is the trainer's step, of texts of just the length asked for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.efficiency.methods import INSTRUCTION, METHODS, StepModel
from benchmarks.efficiency.step import StepMeter, TrainStep
from promptembedder.errors import ConfigError

pytestmark = pytest.mark.slow

NewTrainee = Callable[..., TrainStep]

methods = pytest.mark.parametrize("method", list(METHODS))


def trained_by(trainee: TrainStep) -> dict[str, Tensor]:
    """Gradients of a step by name, weights without one left out."""
    trainee.loss_of(trainee.columns(8, 3)).backward()
    named = trainee.model.named_parameters()
    return {name: weight.grad for name, weight in named if weight.grad is not None}


@methods
def test_gradients_reach_exactly_what_the_method_trains(method: str, trainee: NewTrainee) -> None:
    model = trainee(method)
    expected = {
        "promptembedder": lambda name: any(part in name for part in (".prompter.", ".alignment.", ".deep.")),
        "promptembedder-moved": lambda name: ".alignment." in name or ".deep." in name,
        "promptembedder-held": lambda name: any(part in name for part in (".prompter.", ".alignment.", ".deep.")),
        "promptembedder-input": lambda name: ".prompter." in name or ".alignment." in name,
        "static": lambda name: name.endswith(".vectors"),
        "lora": lambda name: ".lora_" in name,
        "lora-checkpointing": lambda name: ".lora_" in name,
        "full": lambda name: ".reader." in name,
    }[method]
    found = trained_by(model)
    assert found.keys() == {name for name, weight in model.model.named_parameters() if weight.requires_grad}
    assert all(expected(name) for name in found)
    assert max(float(gradient.abs().max()) for gradient in found.values()) > 0
    assert sum(gradient.numel() for gradient in found.values()) == model.trained_parameters()


@methods
def test_the_loss_is_info_nce_of_the_columns_embedded_one_by_one(method: str, trainee: NewTrainee) -> None:
    model = trainee(method)
    columns = model.columns(8, 4)
    anchors, positives = (model.model(dict(column))["sentence_embedding"] for column in columns)
    expected = F.cross_entropy(20.0 * anchors @ positives.T, torch.arange(4))
    torch.testing.assert_close(model.loss_of(columns), expected, rtol=1e-4, atol=1e-4)


@methods
def test_texts_have_the_length_asked_for_and_what_the_method_puts_beside_them(method: str, trainee: NewTrainee) -> None:
    model = trainee(method)
    features = model.model.preprocess(["word"], prompt=INSTRUCTION)
    beside = features["input_ids"].shape[1] - int(features["text_mask"].sum())
    for column in model.columns(11, 3):
        assert column["input_ids"].shape == column["attention_mask"].shape == (3, 11 + beside)
        assert column["text_mask"].sum(dim=1).tolist() == [11, 11, 11]
        assert torch.equal(column["input_ids"][0, :beside], features["input_ids"][0, :beside])


def test_a_begin_of_sequence_token_comes_on_top_of_the_length(trainee: NewTrainee) -> None:
    model = trainee("promptembedder", reader="random:tiny-gemma3")
    assert [column["input_ids"].shape for column in model.columns(7, 2)] == [(2, 8), (2, 8)]


@methods
def test_a_step_changes_what_is_trained_and_nothing_else_and_leaves_no_gradient(
    method: str, trainee: NewTrainee
) -> None:
    model = trainee(method)
    before = {name: weight.detach().clone() for name, weight in model.model.named_parameters()}
    for group in model.optimizer.param_groups:
        group["lr"] = 0.1
    model.step(model.columns(8, 3))
    changed = {name for name, weight in model.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name, weight in model.model.named_parameters() if weight.requires_grad}
    assert all(weight.grad is None for weight in model.model.parameters())


@methods
def test_weights_and_optimiser_are_counted_in_full(method: str, trainee: NewTrainee) -> None:
    model = trainee(method)
    assert model.optimizer_bytes() == 0
    model.step(model.columns(8, 2))
    trained = model.model.text_encoder.trained_weights()
    counters = 4 * len(trained)  # AdamW counts its steps for each weight
    assert model.optimizer_bytes() == 2 * sum(weight.nbytes for weight in trained) + counters
    assert model.weights_bytes() >= sum(weight.nbytes for weight in model.model.parameters())


def test_the_method_counts_its_prompter_among_its_weights(trainee: NewTrainee) -> None:
    parts = trainee("promptembedder").model
    models = (parts.text_encoder.reader, parts.text_encoder.prompter)
    sizes = [sum(weight.nbytes for weight in part.parameters()) for part in models]
    assert trainee("promptembedder").weights_bytes() > sum(sizes)


def test_a_reader_without_so_many_positions_is_refused(trainee: NewTrainee) -> None:
    for method in ("static", "lora"):
        model = trainee(method, reader="random:tiny-gpt2")
        with pytest.raises(ConfigError, match="texts of 96 tokens do not fit the reader's positions"):
            model.columns(96, 2)


def kept_bytes(model: TrainStep, length: int) -> int:
    """Bytes that autograd keeps for the backward pass, weights aside; memory that is shared counts once."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    columns = model.columns(length, 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss_of(columns)
    loss.backward()  # else the next step would find the soft tokens made, and nothing of the prompter be kept
    model.optimizer.zero_grad()
    return sum(storage.nbytes() for storage in kept.values())


def test_what_a_step_keeps_grows_with_the_text_several_times_slower_than_for_lora(trainee: NewTrainee) -> None:
    growth = {}
    for method in ("promptembedder", "promptembedder-input", "static", "lora", "lora-checkpointing"):
        model = trainee(method)
        growth[method] = kept_bytes(model, 64) - kept_bytes(model, 32)
    for method in ("promptembedder", "promptembedder-input", "static"):
        assert 5 * growth[method] < growth["lora"], growth
    assert growth["lora-checkpointing"] < growth["lora"]


def test_held_texts_are_read_once_and_give_the_loss_of_read_ones(trainee: NewTrainee) -> None:
    held, read = trainee("promptembedder-held"), trainee("promptembedder")
    columns = held.columns(16, 3)
    tokens: list[int] = []
    encoder = held.model.text_encoder
    encoder.reader.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["position_ids"].numel()), with_kwargs=True
    )
    first, first_tokens = held.loss_of(columns), sum(tokens)
    tokens.clear()
    second = held.loss_of(columns)
    assert first_tokens - sum(tokens) >= 2 * 3 * 16  # both columns' texts
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, read.loss_of(columns), rtol=1e-5, atol=1e-5)


def test_a_meter_measures_memory_and_time(step_model: Callable[..., StepModel]) -> None:
    meter = StepMeter(step_model("lora"))
    memory = meter.measure(16, 4)
    assert memory.peak_bytes >= memory.baseline_bytes > memory.weights_bytes > 0
    assert memory.activation_bytes == memory.peak_bytes - memory.baseline_bytes
    assert memory.optimizer_bytes > 2 * 4 * memory.trained_parameters
    taken = meter.timed(16, 4)
    assert taken.seconds > 0
    assert taken.cpu_seconds is not None
    assert taken.cpu_seconds > 0
    meter.close()
