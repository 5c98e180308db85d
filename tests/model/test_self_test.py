"""Laws of the self-test: it is the vector of the saved model, in whichever state the model was saved."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, ModelFormatError, WeightsError
from promptembedder.model import SELF_TEST_TEXT, SelfTest, read_self_test

NewModel = Callable[..., PromptEmbedder]


@pytest.mark.parametrize("changes", [{}, {"placement": "prefix"}, {"with_text": True}], ids=str)
def test_saved_self_test_equals_the_models_vector(
    new_model: NewModel, tmp_path: Path, changes: dict[str, object]
) -> None:
    model = new_model(**changes)
    model.encoder.train()
    model.encoder.self_test()
    assert model.encoder.training
    model.save(str(tmp_path / "model"))
    saved = read_self_test(tmp_path / "model")
    assert saved is not None
    vector = model.encode([SELF_TEST_TEXT], prompt=saved.instruction)[0]
    np.testing.assert_allclose(np.array(saved.vector), vector, atol=1e-6)
    assert saved.check(vector, dtype="float32") == pytest.approx(1, abs=1e-6)


def test_self_test_prefers_a_compiled_instruction(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model()
    assert model.encoder.self_test().instruction == model.encoder.config.default_instruction  # type: ignore[union-attr]
    model.compile_instructions(["find the same"])
    assert model.encoder.self_test().instruction == "find the same"  # type: ignore[union-attr]
    model.save(str(tmp_path / "model"))
    light = PromptEmbedder.from_pretrained(tmp_path / "model", with_prompter=False, device="cpu")
    now, saved = light.encoder.self_test(), read_self_test(tmp_path / "model")
    assert now is not None
    assert saved is not None
    assert now.instruction == saved.instruction == "find the same"
    assert saved.check(np.array(now.vector), dtype=now.dtype) == pytest.approx(1, abs=1e-6)


def test_no_self_test_without_prompter_and_compiled_instructions(new_model: NewModel) -> None:
    model = new_model()
    model.encoder.prompter = None
    assert model.encoder.self_test() is None


def test_model_with_nan_weights_has_no_self_test(new_model: NewModel) -> None:
    model = new_model()
    with torch.no_grad():
        model.encoder.alignment.base.fill_(float("nan"))
    assert model.encoder.self_test() is None


def test_config_error_of_the_self_test_propagates(new_model: NewModel) -> None:
    """Any ValueError, and so a ConfigError, was reported as a vector that is not finite."""
    model = new_model()
    model.encoder.prompter = None
    with pytest.raises(ConfigError, match="is not compiled"):
        model.encoder.self_test("an instruction that was never compiled")


def test_other_dtype_has_a_wider_cosine_tolerance() -> None:
    saved = SelfTest(instruction="x", reader="y", dtype="float32", vector=(1.0, 0.0))
    turned = np.array([0.995, 0.0998], dtype=np.float32)
    assert saved.check(turned, dtype="int8") == pytest.approx(0.995, abs=1e-3)
    with pytest.raises(WeightsError, match=r"cosine 0\.9950 to the saved vector, expected at least 0\.999"):
        saved.check(turned, dtype="float32")
    with pytest.raises(WeightsError, match="2 numbers, the model gives 3"):
        saved.check(np.ones(3, dtype=np.float32), dtype="float32")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"instruction": 1, "reader": "", "dtype": "", "vector": [1]}', '{"vector": ["a"]}']
)
def test_damaged_self_test_file_raises_model_format_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "self_test.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"self_test\.json is damaged"):
        read_self_test(tmp_path)


@pytest.mark.parametrize("vector", ["[" * 100_000, f"[{10**400}]", '["1"]', '"abc"', "[{}]", "[true]", "[NaN]"])
def test_damaged_self_test_vector_raises_model_format_error(tmp_path: Path, vector: str) -> None:
    """Fuzzing: RecursionError, OverflowError, and a TypeError once it was compared."""
    content = f'{{"instruction": "a", "reader": "b", "dtype": "float32", "vector": {vector}}}'
    (tmp_path / "self_test.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelFormatError, match="is damaged"):
        read_self_test(tmp_path)
