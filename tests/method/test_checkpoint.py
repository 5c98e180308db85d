"""Save, then load, is identity; and what does not fit is refused before it is used."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder
from promptembedder.backbone.random_models import random_model
from promptembedder.errors import BackboneError, ConfigError, ModelFormatError
from promptembedder.method import AlignmentConfig, RelaxationConfig
from promptembedder.model import restore_parts
from promptembedder.storage import MANIFEST_NAME, read_manifest, write_manifest

NewModel = Callable[..., PromptEmbedder]
INSTRUCTION, OTHER = "find the answer", "tell the mood"

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"tuning": "full"},
    "frozen": {"tuning": "frozen"},
    "hidden": {"relaxation": RelaxationConfig(kind="hidden")},
    "vocabulary": {"alignment": AlignmentConfig(kind="vocabulary")},
    "prefix": {"placement": "prefix", "pooling": "last"},
    "with text": {"with_text": True},
    "three tokens": {"num_soft_tokens": 3, "max_seq_length": 7},
    "at the input alone": {"deep_prompt_interval": 0},
    "at every second layer": {
        "deep_prompt_interval": 2,
        "deep_prompt_rank": 3,
        "alignment": AlignmentConfig(kind="vocabulary"),
    },
}


@pytest.fixture
def saved(new_model: NewModel, tmp_path: Path) -> Path:
    """A model of two families with one compiled instruction."""
    model = new_model("tiny-qwen3")
    model.compile_instructions([INSTRUCTION])
    model.save(str(tmp_path / "model"))
    return tmp_path / "model"


def rehashed(folder: Path) -> None:
    """Make the manifest fit its files again, as somebody who meant to would."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    del content["sha256"]  # format 1 has no hash of its own
    path.write_text(json.dumps({**content, "format": 1, "files": {}}))
    write_manifest(folder, replace(read_manifest(folder), files=content["files"]))


def changed(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_then_load_is_identity(variant: str, new_model: NewModel, texts: list[str], tmp_path: Path) -> None:
    model = new_model("tiny-gemma3", **VARIANTS[variant])
    model.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.encoder.config == model.encoder.config
    np.testing.assert_array_equal(loaded.encode(texts, prompt=INSTRUCTION), model.encode(texts, prompt=INSTRUCTION))
    loaded.save(str(tmp_path / "again"))
    for file in (tmp_path / "model").glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.every_family
def test_save_then_load_is_identity_for_each_family(
    family: str, new_model: NewModel, texts: list[str], tmp_path: Path
) -> None:
    model = new_model(family, family)
    model.save(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(str(tmp_path / "model"), device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts, prompt=INSTRUCTION), model.encode(texts, prompt=INSTRUCTION))


def test_a_loaded_model_trains_on_what_the_saved_one_trains(saved: Path, new_model: NewModel) -> None:
    new, loaded = new_model("tiny-qwen3"), PromptEmbedder.from_pretrained(saved, device="cpu")
    names = [{name for name, weight in each.named_parameters() if weight.requires_grad} for each in (new, loaded)]
    assert names[0] == names[1]


def test_sentence_transformers_loads_it_as_its_own(saved: Path, texts: list[str]) -> None:
    ours = PromptEmbedder.from_pretrained(saved, device="cpu")
    theirs = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")
    for prompt in (INSTRUCTION, OTHER, None):
        np.testing.assert_array_equal(theirs.encode(texts, prompt=prompt), ours.encode(texts, prompt=prompt))


def test_what_sentence_transformers_keeps_beside_the_module_comes_back(new_model: NewModel, tmp_path: Path) -> None:
    """Prompts were lost: the empty ones of a new model counted as set by the user."""
    model = new_model("tiny-qwen3")
    model.prompts = {"query": INSTRUCTION, "document": OTHER}
    model.default_prompt_name = "query"
    model.similarity_fn_name = "dot"
    model.save_pretrained(str(tmp_path / "model"))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert (loaded.prompts, loaded.default_prompt_name) == (model.prompts, "query")
    assert loaded.similarity_fn_name == "dot"
    np.testing.assert_array_equal(loaded.encode(["a"]), model.encode(["a"], prompt=INSTRUCTION))


def test_a_saved_model_holds_no_backbone(saved: Path) -> None:
    names = {name for file in saved.glob("*.safetensors") for name in load_file(file)}
    assert {name for name in names if ".lora_" not in name} == {
        "soft_prompt_delta",
        "log_scale",
        "base",
        "delta",
        "bias",
        "deep.down",
        "deep.up",
        "deep.bias",
        "text_pooling.centre",
        "text_pooling.shared",
        "text_pooling.weight",
        "soft_tokens",
    }
    backbone = sum(
        weight.nbytes for weight in random_model("tiny-qwen3", layers=None, dtype=torch.float32).parameters()
    )
    assert sum(file.stat().st_size for file in saved.rglob("*") if file.suffix == ".safetensors") < backbone
    assert not any(file.suffix in {".bin", ".pt", ".pkl", ".py"} for file in saved.rglob("*"))


# -- compiled instructions ---------------------------------------------------------------------------------------------


def test_compiled_tokens_survive_saving(saved: Path, texts: list[str]) -> None:
    loaded = PromptEmbedder.from_pretrained(saved, device="cpu")
    runs: list[int] = []
    loaded.encoder.prompter.register_forward_hook(lambda *_: runs.append(1))
    compiled = loaded.encode(texts, prompt=INSTRUCTION)
    assert runs == []
    assert list(loaded.encoder.parts().compiled) == [INSTRUCTION]
    loaded.encoder.store.compiled.clear()
    np.testing.assert_allclose(loaded.encode(texts, prompt=INSTRUCTION), compiled, atol=1e-5)
    assert runs == [1]


def test_without_the_prompter_compiled_instructions_are_served_and_others_refused(
    saved: Path, texts: list[str]
) -> None:
    whole = PromptEmbedder.from_pretrained(saved, device="cpu")
    light = PromptEmbedder.from_pretrained(saved, with_prompter=False, device="cpu")
    assert light.encoder.prompter is None
    np.testing.assert_array_equal(light.encode(texts, prompt=INSTRUCTION), whole.encode(texts, prompt=INSTRUCTION))
    for ask in (lambda: light.encode(["a"], prompt=OTHER), lambda: light.soft_tokens(OTHER)):
        with pytest.raises(
            ConfigError, match=f"instruction '{OTHER}' is not compiled .* Load it with the prompter, or"
        ):
            ask()
    with pytest.raises(ConfigError, match="instruction 'Represent the text for retrieval' is not compiled"):
        light.encode(["a"])
    np.testing.assert_array_equal(light.encode(texts, prompt=INSTRUCTION), whole.encode(texts, prompt=INSTRUCTION))


def test_without_the_prompter_a_forward_pass_right_after_loading_serves_compiled_tokens(saved: Path) -> None:
    """A module begins in training mode, where compiled tokens are dropped: here they are all there is."""
    light = PromptEmbedder.from_pretrained(saved, with_prompter=False, device="cpu")
    features = light.preprocess(["a"], prompt=INSTRUCTION)
    with torch.no_grad():
        vector = light(features)["sentence_embedding"].numpy()
    np.testing.assert_array_equal(light.encode(["a"], prompt=INSTRUCTION), vector)


def test_without_the_prompter_a_copy_in_another_process_serves_compiled_tokens(saved: Path) -> None:
    import pickle

    light = PromptEmbedder.from_pretrained(saved, with_prompter=False, device="cpu")
    other = pickle.loads(pickle.dumps(light))
    np.testing.assert_array_equal(other.encode(["a"], prompt=INSTRUCTION), light.encode(["a"], prompt=INSTRUCTION))


def test_without_the_prompter_the_model_cannot_be_saved(saved: Path, tmp_path: Path) -> None:
    light = PromptEmbedder.from_pretrained(saved, with_prompter=False, device="cpu")
    with pytest.raises(ModelFormatError, match="loaded without its prompter and cannot be saved"):
        light.save(str(tmp_path / "light"))
    assert not (tmp_path / "light").exists()


# -- saving over what is there -----------------------------------------------------------------------------------------


def test_saving_again_replaces_the_model_and_leaves_other_files(saved: Path, new_model: NewModel) -> None:
    (saved / "log.txt").write_text("kept")
    model = new_model("tiny-qwen3")
    with torch.no_grad():
        model.encoder.alignment.delta.add_(0.1)
    model.save(str(saved))
    assert (saved / "log.txt").read_text() == "kept"
    loaded = PromptEmbedder.from_pretrained(saved, device="cpu")
    np.testing.assert_array_equal(loaded.encode(["a"], prompt=INSTRUCTION), model.encode(["a"], prompt=INSTRUCTION))


def test_a_save_that_fails_leaves_the_old_model(
    saved: Path, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("promptembedder.method.checkpoint.write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        new_model("tiny-qwen3").save(str(saved))
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelFormatError, match="is not a saved model"):
            PromptEmbedder.from_pretrained(folder)


@pytest.mark.parametrize("name", ["prompter", "alignment", "soft_tokens"])
def test_a_changed_byte_is_refused(saved: Path, name: str) -> None:
    path = saved / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=f"{name}.safetensors has changed"):
        PromptEmbedder.from_pretrained(saved)


@pytest.mark.parametrize("name", ["prompter", "alignment", "soft_tokens"])
def test_a_value_that_is_not_finite_is_refused(saved: Path, name: str) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        next(tensor for tensor in tensors.values() if tensor.dim() > 1)[0] = float("nan")

    changed(saved, f"{name}.safetensors", poison)
    rehashed(saved)
    with pytest.raises(ModelFormatError, match=f"{name}.safetensors contains values that are not finite"):
        PromptEmbedder.from_pretrained(saved)


def test_a_model_saved_with_weights_that_are_not_finite_is_refused(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model("tiny-qwen3")
    with torch.no_grad():
        model.encoder.alignment.bias[3] = float("inf")
    model.save(str(tmp_path / "model"))
    with pytest.raises(ModelFormatError, match="not finite in 'bias'. Use an earlier checkpoint"):
        PromptEmbedder.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prompter", lambda tensors: tensors.pop("log_scale"), "1 tensors missing"),
        ("prompter", lambda tensors: tensors.update(more=torch.ones(1)), "1 not known"),
        ("alignment", lambda tensors: tensors.pop("bias"), "1 tensors missing .'bias'."),
        ("alignment", lambda tensors: tensors.update(delta=torch.ones(2, 2)), "'delta' has shape"),
        ("alignment", lambda tensors: tensors.update(bias=torch.ones(3)), "'bias' has shape"),
        ("alignment", lambda tensors: tensors.update(base=torch.ones(32, 7), delta=torch.ones(32, 7)), "has shape"),
        ("soft_tokens", lambda tensors: tensors.update(soft_tokens=torch.ones(1, 5, 7)), "'soft_tokens' has shape"),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    saved: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    """An alignment of another width was loaded, and failed at the first text."""
    changed(saved, f"{name}.safetensors", change)
    rehashed(saved)
    with pytest.raises(ModelFormatError, match=message):
        PromptEmbedder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("deep.down"), "1 tensors missing .'deep.down'."),
        (lambda tensors: tensors.update({"deep.down": torch.ones(3)}), "'deep.down' has shape"),
        (lambda tensors: tensors.update({"deep.up": torch.ones(2, 32, 7)}), "'deep.up' has shape"),
    ],
)
def test_deeper_alignments_that_do_not_fit_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, new_model: NewModel, tmp_path: Path
) -> None:
    new_model("tiny-qwen3", deep_prompt_interval=1).save(str(tmp_path / "model"))
    changed(tmp_path / "model", "alignment.safetensors", change)
    rehashed(tmp_path / "model")
    with pytest.raises(ModelFormatError, match=message):
        PromptEmbedder.from_pretrained(tmp_path / "model")


def test_restoring_deeper_alignments_gives_the_saved_vectors(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model("tiny-qwen3", deep_prompt_interval=1)
    expected = model.encode(["a"], prompt=INSTRUCTION)
    model.save(str(tmp_path / "model"))
    with torch.no_grad():
        for weight in model.encoder.deep.parameters():
            weight.add_(0.3)
    assert np.abs(model.encode(["a"], prompt=INSTRUCTION) - expected).max() > 1e-4
    model.encoder.restore(tmp_path / "model")
    np.testing.assert_array_equal(model.encode(["a"], prompt=INSTRUCTION), expected)


def test_restoring_in_place_gives_the_saved_vectors(saved: Path, new_model: NewModel) -> None:
    model = new_model("tiny-qwen3")
    expected = model.encode(["a"], prompt=INSTRUCTION)
    with torch.no_grad():
        for weight in model.encoder.trained_weights():
            weight.add_(0.3)
    moved = model.encode(["a"], prompt=INSTRUCTION)
    restore_parts(model.encoder.parts(), saved)
    assert np.abs(moved - expected).max() > 1e-4
    np.testing.assert_array_equal(model.encode(["a"], prompt=INSTRUCTION), expected)


def test_restoring_another_models_weights_is_refused(saved: Path, new_model: NewModel) -> None:
    with pytest.raises(ModelFormatError, match="has shape"):
        restore_parts(new_model("tiny-gemma3").encoder.parts(), saved)


# -- the backbone that a model was trained on --------------------------------------------------------------------------


@pytest.fixture
def trained_on(backbone_folder: Path, new_config: Callable[..., ModelConfig], tmp_path: Path) -> Path:
    """A model whose reader is the folder `backbone_folder`."""
    config = replace(new_config(), reader=BackboneConfig(source=str(backbone_folder), dtype="float32"))
    PromptEmbedder.create(config=config, device="cpu").save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_a_model_on_a_folder_loads_from_that_folder(trained_on: Path) -> None:
    assert PromptEmbedder.from_pretrained(trained_on, device="cpu").encode(["a"]).shape == (1, 40)


def test_a_backbone_whose_weights_changed_is_refused_with_both_fingerprints(
    trained_on: Path, backbone_folder: Path
) -> None:
    before = read_manifest(trained_on).backbones["reader"]["fingerprint"]
    changed(backbone_folder, "model.safetensors", lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    with pytest.raises(ModelFormatError) as error:
        PromptEmbedder.from_pretrained(trained_on)
    after = PromptEmbedder.create(
        reader=str(backbone_folder), prompter="random:tiny-llama"
    ).encoder.reader.identity.fingerprint
    assert before != after
    assert before in str(error.value)
    assert after in str(error.value)
    assert "Restore the old weights, or train again on the new ones" in str(error.value)


def test_a_backbone_that_is_gone_is_refused(trained_on: Path, backbone_folder: Path) -> None:
    backbone_folder.rename(backbone_folder.with_name("elsewhere"))
    with pytest.raises(BackboneError, match="does not exist"):
        PromptEmbedder.from_pretrained(trained_on)


def test_a_model_saved_before_today_s_defaults_loads_as_it_was(
    new_model: NewModel, texts: list[str], tmp_path: Path
) -> None:
    """Soft tokens at every layer, the text's own states and the start of texts became defaults later."""
    model = new_model("tiny-llama", deep_prompt_interval=0, text_pooling_weight=0.0, text_start="")
    model.save(str(tmp_path / "model"))
    path = tmp_path / "model" / MANIFEST_NAME
    content = json.loads(path.read_text())
    for name in (
        "deep_prompt_interval",
        "deep_prompt_rank",
        "text_pooling_weight",
        "text_pooling_layer",
        "whitening_rank",
    ):
        del content["config"][name]
    for backbone in (content["config"]["reader"], content["config"]["prompter"]["backbone"]):
        del backbone["text_start"]
    del content["kind"], content["sha256"]
    path.write_text(json.dumps({**content, "format": 1}))
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts), model.encode(texts))


def test_a_model_card_that_is_a_link_out_of_the_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    """No hash holds the card, since it may be edited; saved again, it would have carried the other file along."""
    (tmp_path / "secret").write_text("mine")
    (saved / "README.md").unlink()
    (saved / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFormatError, match=r"README.md is a link to a file outside its folder"):
        PromptEmbedder.from_pretrained(saved, device="cpu")
