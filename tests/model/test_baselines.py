"""Baselines behind the same door: the frozen reader alone, and what is saved of each kind."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder
from promptembedder.backbone import Backbone
from promptembedder.backbone.random_models import random_model, random_tokenizer
from promptembedder.errors import BackboneError, ConfigError, DataError, ModelFormatError
from promptembedder.model import BaselineConfig, BaselineEmbedder, DualEncoder, Encoder, frozen_pooling
from promptembedder.storage import MANIFEST_NAME, read_manifest, write_manifest

NewBackbone = Callable[..., Backbone]
NewBaseline = Callable[..., BaselineEmbedder]
INSTRUCTION = "find the same thing"
WEIGHTS = "baseline.safetensors"

KINDS: dict[str, dict[str, Any]] = {
    "static": {"kind": "static", "instruction_variants": (("find", INSTRUCTION), ("tell the mood",))},
    "lora": {"kind": "lora", "attention": "bidirectional"},
    "full": {"kind": "full", "gradient_checkpointing": True},
    "frozen": {"kind": "frozen", "template": "prompteol", "model": {"pooling": "last"}},
}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return bool(str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_is_the_pooled_state_of_the_text_read_plainly(
    family: str, pooling: str, new_backbone: NewBackbone, texts: list[str]
) -> None:
    reader = new_backbone(family)
    found = frozen_pooling(reader, pooling=pooling).encode(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = reader.tokenizer.tokenize([text], max_length=90).ids
        with torch.no_grad():
            states = reader.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        own = states[1:]  # the mean is over the text, without its BOS or newline
        state = (own.mean(dim=0) if pooling == "mean" else states[-1]).numpy()
        slow = state / np.linalg.norm(state) if len(own) or pooling == "last" else np.zeros(reader.dim)
        np.testing.assert_allclose(vector, slow, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_empty_texts_alone_have_the_zero_vector(pooling: str, new_backbone: NewBackbone) -> None:
    """A batch of nothing else has no position to take the last of."""
    found = frozen_pooling(new_backbone("tiny-llama", text_start=""), pooling=pooling).encode(["", ""])
    np.testing.assert_array_equal(found, np.zeros((2, 32), dtype=np.float32))


def test_the_instruction_is_ignored_and_nothing_trains(new_backbone: NewBackbone) -> None:
    model = frozen_pooling(new_backbone("tiny-llama"))
    np.testing.assert_array_equal(model.encode(["a"], prompt="find"), model.encode(["a"]))
    assert not any(weight.requires_grad for weight in model.parameters())
    assert isinstance(model, Encoder)


def test_texts_are_cut_at_the_positions_of_gpt2(new_backbone: NewBackbone) -> None:
    """Token 97 and on had no position to stand at; one is the newline before the text."""
    model = frozen_pooling(new_backbone("tiny-gpt2"))
    np.testing.assert_allclose(model.encode(["x" * 500]), model.encode(["x" * 95]), atol=1e-5)


def test_an_unknown_pooling_is_refused(new_backbone: NewBackbone) -> None:
    with pytest.raises(ConfigError, match="unknown pooling 'max'. Use one of: mean, last"):
        frozen_pooling(new_backbone("tiny-llama"), pooling="max")


def test_a_text_that_is_no_string_is_refused(new_backbone: NewBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from promptembedder.data import clean_text
    from promptembedder.method import TextEncoder
    from promptembedder.model import PooledEncoder, PromptedSentenceTransformer

    monkeypatch.setattr(
        PromptedSentenceTransformer, "preprocess", inspect.unwrap(PromptedSentenceTransformer.preprocess)
    )
    monkeypatch.setattr(PooledEncoder, "preprocess", inspect.unwrap(PooledEncoder.preprocess))
    monkeypatch.setattr(TextEncoder, "token_features", inspect.unwrap(TextEncoder.token_features))
    monkeypatch.setattr("promptembedder.method.text_encoder.clean_text", inspect.unwrap(clean_text))
    with pytest.raises(DataError, match="a text must be a str, got int"):
        frozen_pooling(new_backbone("tiny-llama")).encode(["a", 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "prefix"}, "unknown baseline.kind 'prefix'. Use one of: static, lora, full, frozen"),
        ({"template": "chat"}, "unknown baseline.template 'chat'. Use one of: instruct, plain, prompteol"),
        ({"attention": "sparse"}, "unknown baseline.attention 'sparse'. Use one of: causal, bidirectional"),
        ({"fallback": "none"}, "unknown baseline.fallback 'none'. Use one of: nearest, default, shared"),
        ({"lora_rank": 0}, "baseline.lora_rank must be at least 1, got 0. Try 16"),
    ],
)
def test_a_setting_that_is_unknown_or_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BaselineConfig(**changes)


# -- saved and loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_save_then_load_is_identity(kind: str, new_baseline: NewBaseline, texts: list[str], tmp_path: Path) -> None:
    model = new_baseline(name="tiny-gemma3", **KINDS[kind])
    model.save(str(tmp_path / "model"))
    loaded = BaselineEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.text_encoder.config == model.text_encoder.config
    assert loaded.text_encoder.baseline == model.text_encoder.baseline
    for prompt in (INSTRUCTION, None):
        np.testing.assert_array_equal(loaded.encode(texts, prompt=prompt), model.encode(texts, prompt=prompt))
    loaded.save(str(tmp_path / "again"))
    files = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("model", "again")]
    assert len(files[0]) == len(files[1]) == (0 if kind == "frozen" else 1)
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_one_trains_on_what_the_saved_one_trains(kind: str, new_baseline: NewBaseline, tmp_path: Path) -> None:
    model = new_baseline(**KINDS[kind])
    model.save(str(tmp_path / "model"))
    loaded = BaselineEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert not any(module.training for module in loaded.modules())
    names = [{name for name, weight in each.named_parameters() if weight.requires_grad} for each in (model, loaded)]
    assert names[0] == names[1]


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-phi3"])
def test_adapters_on_other_families_come_back_too(
    name: str, new_baseline: NewBaseline, texts: list[str], tmp_path: Path
) -> None:
    """GPT-2 stores its matrices the other way round."""
    model = new_baseline("lora", name)
    model.save(str(tmp_path / "model"))
    loaded = BaselineEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts, prompt=INSTRUCTION), model.encode(texts, prompt=INSTRUCTION))


def test_what_is_saved_is_what_was_trained(new_baseline: NewBaseline, tmp_path: Path) -> None:
    for kind in ("static", "lora", "full"):
        model = new_baseline(**KINDS[kind])
        model.save(str(tmp_path / kind))
        saved = load_file(tmp_path / kind / WEIGHTS)
        trained = [weight.shape for weight in model.text_encoder.trained_weights()]
        fitted = {"text_pooling.centre", "text_pooling.shared", "text_pooling.weight"} if kind == "static" else set()
        assert fitted <= saved.keys()
        assert sorted(weight.shape for name, weight in saved.items() if name not in fitted) == sorted(trained)
        assert not any(file.suffix in {".bin", ".pt", ".pkl", ".py"} for file in (tmp_path / kind).rglob("*"))


def test_prompts_come_back(new_baseline: NewBaseline, tmp_path: Path) -> None:
    model = new_baseline("frozen")
    model.prompts = {"query": INSTRUCTION, "document": "store"}
    model.default_prompt_name = "query"
    model.save_pretrained(str(tmp_path / "model"))
    loaded = BaselineEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert (loaded.prompts, loaded.default_prompt_name) == (model.prompts, "query")
    np.testing.assert_array_equal(loaded.encode(["a"]), model.encode(["a"], prompt=INSTRUCTION))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_for_another_process_gives_the_same_vectors(
    kind: str, new_baseline: NewBaseline, texts: list[str]
) -> None:
    changes = {**KINDS[kind], "gradient_checkpointing": False}  # with it, transformers leaves a local function behind
    model = new_baseline(**changes)
    expected = model.encode(texts, prompt=INSTRUCTION)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.encode(texts, prompt=INSTRUCTION), expected)


@pytest.mark.parametrize("kind", ["static", "lora"])
def test_restoring_in_place_gives_the_saved_vectors(kind: str, new_baseline: NewBaseline, tmp_path: Path) -> None:
    model = new_baseline(**KINDS[kind])
    expected = model.encode(["a text"], prompt=INSTRUCTION)
    model.save(str(tmp_path / "model"))
    with torch.no_grad():
        for weight in model.text_encoder.trained_weights():
            weight.add_(0.3)
    assert np.abs(model.encode(["a text"], prompt=INSTRUCTION) - expected).max() > 1e-4
    model.text_encoder.restore(tmp_path / "model")
    np.testing.assert_array_equal(model.encode(["a text"], prompt=INSTRUCTION), expected)


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(new_baseline: NewBaseline, tmp_path: Path) -> Path:
    new_baseline("lora", "tiny-qwen3").save(str(tmp_path / "model"))
    return tmp_path / "model"


def rewritten(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights, and a manifest that fits them, as somebody who meant to would."""
    save_file(tensors, folder / WEIGHTS)
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    del content["sha256"]  # format 1 has no hash of its own
    path.write_text(json.dumps({**content, "format": 1, "files": {}}))
    write_manifest(folder, replace(read_manifest(folder), files=content["files"]))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelFormatError, match="is not a saved model") as error:
            BaselineEmbedder.from_pretrained(folder)
        assert one_line(error)


@pytest.mark.parametrize("torn", ["gone", "changed", "cut"])
def test_a_torn_folder_is_refused(torn: str, saved: Path) -> None:
    path = saved / WEIGHTS
    content = path.read_bytes()
    if torn == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if torn == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFormatError, match=f"Incomplete model folder .*: {WEIGHTS}") as error:
        BaselineEmbedder.from_pretrained(saved)
    assert one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(next(iter(tensors))), "1 tensors missing"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "1 not known .'more'."),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.ones(2, 2)}), "has shape .2, 2., expected"),
        (lambda tensors: next(iter(tensors.values())).fill_(float("nan")), "contains values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, saved: Path
) -> None:
    tensors = load_file(saved / WEIGHTS)
    change(tensors)
    rewritten(saved, tensors)
    with pytest.raises(ModelFormatError, match=message) as error:
        BaselineEmbedder.from_pretrained(saved)
    assert one_line(error)


def test_a_baseline_is_no_promptembedder_and_the_other_way_round(
    saved: Path, new_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    """The configuration of one was read as the other's, and an unknown setting 'model' was all that one was told."""
    PromptEmbedder.create(config=new_config(), device="cpu").save(str(tmp_path / "method"))
    for load in (PromptEmbedder.from_pretrained, lambda folder: DualEncoder.load(str(folder))):
        with pytest.raises(
            ModelFormatError, match="holds a baseline, not a promptembedder. Open it with load_encoder"
        ) as e:
            load(saved)
        assert one_line(e)
    with pytest.raises(
        ModelFormatError, match="holds a promptembedder, not a baseline. Open it with load_encoder"
    ) as e:
        BaselineEmbedder.from_pretrained(tmp_path / "method")
    assert one_line(e)


def test_a_reader_whose_weights_changed_or_that_is_gone_is_refused(
    lively_backbones: None, new_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    random_model("tiny-qwen3", layers=None, dtype=torch.float32).save_pretrained(folder)
    random_tokenizer().save_pretrained(folder)
    config = replace(new_config(), reader=BackboneConfig(source=str(folder), dtype="float32"))
    model = BaselineEmbedder.create(config, BaselineConfig(kind="frozen"), device="cpu")
    model.save(str(tmp_path / "model"))
    loaded = BaselineEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.encode(["a"]), model.encode(["a"]))
    before = read_manifest(tmp_path / "model").backbones["reader"]["fingerprint"]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].add_(1e-3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=f"the model was trained on {before}. Restore the old weights") as error:
        BaselineEmbedder.from_pretrained(tmp_path / "model")
    assert one_line(error)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(BackboneError, match="does not exist"):
        BaselineEmbedder.from_pretrained(tmp_path / "model")
