"""Laws of loading: a model that does not compute what it did is not served."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, ModelFormatError, WeightsError
from promptembedder.model import check_self_test
from promptembedder.server import EmbedRequest, ReadingConfig, ServerConfig, load_service
from promptembedder.server.telemetry import ServerMetrics

NewModel = Callable[..., PromptEmbedder]
CONFIG = ServerConfig(model_name="tiny")


def test_the_reader_is_run_as_configured(saved_model: Path) -> None:
    """`serve` had neither the early exit nor the length limit nor the dimensions of `encode`."""
    reading = ReadingConfig(device="cpu", early_exit_fraction=0.8, max_length=9)
    config = ServerConfig(model_name="tiny", dimensions=8)
    service = load_service(saved_model, config, ServerMetrics(), reading=reading)
    assert (service.max_input_tokens, service.model.early_exit_fraction) == (9, 0.8)
    result = asyncio.run(service.embed(EmbedRequest(inputs=["a text"])))
    assert result.vectors.shape == (1, 1, 8)
    service.close()
    with pytest.raises(ConfigError, match="dimensions must be between 1 and 40, got 41"):
        load_service(saved_model, ServerConfig(model_name="tiny", dimensions=41), ServerMetrics())


def load(folder: Path, config: ServerConfig = CONFIG) -> None:
    load_service(folder, config, ServerMetrics(), reading=ReadingConfig(device="cpu")).close()


def test_a_saved_model_passes_its_own_test_with_and_without_prompter(saved_model: Path) -> None:
    for with_prompter in (True, False):
        model = PromptEmbedder.from_pretrained(saved_model, with_prompter=with_prompter, device="cpu")
        assert check_self_test(model, saved_model) == pytest.approx(1, abs=1e-6)


def test_a_model_that_computes_something_else_is_refused(saved_model: Path) -> None:
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    with torch.no_grad():
        for weight in model.encoder.reader.model.parameters():
            weight.mul_(1.5)
    with pytest.raises(WeightsError, match="does not compute what it did when it was saved: cosine"):
        check_self_test(model, saved_model)


def test_vectors_that_are_not_finite_are_refused(saved_model: Path) -> None:
    model = PromptEmbedder.from_pretrained(saved_model, device="cpu")
    with torch.no_grad():
        next(model.encoder.reader.model.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        check_self_test(model, saved_model)


def test_a_changed_self_test_is_a_torn_model(new_model: NewModel, tmp_path: Path) -> None:
    new_model().save(str(tmp_path / "model"))
    path = tmp_path / "model" / "self_test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "int8"}))
    with pytest.raises(ModelFormatError, match=r"self_test\.json has changed"):
        load(tmp_path / "model")


def test_a_model_saved_before_self_tests_is_served(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model()
    model.save(str(tmp_path / "model"))
    assert check_self_test(model, tmp_path) is None


@pytest.mark.parametrize("warmup", ["none", "min", "full"])
def test_every_warmup_ends_in_a_service(saved_model: Path, warmup: str) -> None:
    from promptembedder.server import ComputeConfig

    compute = ComputeConfig(warmup=warmup, max_batch_tokens=100)
    load(saved_model, ServerConfig(model_name="tiny", compute=compute))


def test_compiled_instructions_alone_need_some(new_model: NewModel, tmp_path: Path) -> None:
    new_model().save(str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="no compiled instruction to serve"):
        load(tmp_path / "model", ServerConfig(model_name="tiny", instructions="compiled"))


def test_soft_tokens_that_depend_on_texts_cannot_be_served(new_model: NewModel, tmp_path: Path) -> None:
    new_model(with_text=True).save(str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="serving needs a model with placement 'suffix'"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name": "a@b"}, "model_name"),
        ({"model_name": ""}, "model_name"),
        ({"instructions": "some"}, "free or compiled"),
        ({"truncate": "both"}, "error, left or right"),
    ],
)
def test_settings_are_checked(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**{"model_name": "tiny", **changes})
