"""Laws of the migration: what format 3 saved opens unchanged, and is saved as format 4."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from promptembedder import PromptEmbedder
from promptembedder.backbone import RANDOM_MODELS
from promptembedder.errors import ConfigError
from promptembedder.model import SELF_TEST_TEXT, load_encoder, read_self_test
from promptembedder.storage import MANIFEST_NAME, from_mapping, hash_files, read_manifest, write_manifest
from promptembedder.storage.settings import (
    RENAMED_SETTINGS,
    migrate_conditioning,
    migrate_settings,
    migrate_tensor_name,
)
from promptembedder.training import Recipe

# saved by the last version that wrote format 3, on random:tiny-llama: every renamed setting and tensor is in use
FORMAT3 = Path(__file__).parent / "format3"
COMPILED = "Find the same thing"
TEXTS = ["a text", "", "another one"]
USUAL_MODELS = dict(RANDOM_MODELS)  # as they are when this file is imported, before any fixture has run


@pytest.fixture(autouse=True)
def usual_backbones() -> Iterator[None]:
    """Random weights as other processes have them: `lively_backbones` may have changed those of this process."""
    changed = dict(RANDOM_MODELS)
    RANDOM_MODELS.update(USUAL_MODELS)
    yield
    RANDOM_MODELS.update(changed)


def self_test_vector(model: PromptEmbedder, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The self-test's vector as `model` computes it, and as it was saved in `folder`."""
    saved = read_self_test(folder)
    assert saved is not None
    return model.encode(SELF_TEST_TEXT, prompt=saved.instruction), np.array(saved.vector, dtype=np.float32)


def test_model_of_format_3_computes_its_saved_self_test_vector() -> None:
    computed, saved = self_test_vector(PromptEmbedder.from_pretrained(FORMAT3, device="cpu"), FORMAT3)
    np.testing.assert_allclose(computed, saved, atol=1e-5)


def test_model_of_format_3_serves_its_compiled_instruction_without_a_prompter() -> None:
    light = PromptEmbedder.from_pretrained(FORMAT3, with_prompter=False, device="cpu")
    full = PromptEmbedder.from_pretrained(FORMAT3, device="cpu")
    np.testing.assert_allclose(
        light.encode(SELF_TEST_TEXT, prompt=COMPILED), full.encode(SELF_TEST_TEXT, prompt=COMPILED), atol=1e-5
    )


def test_model_of_format_3_loads_through_load_encoder() -> None:
    computed, saved = self_test_vector(load_encoder(str(FORMAT3), device="cpu").model, FORMAT3)
    np.testing.assert_allclose(computed, saved, atol=1e-5)


def test_sentence_transformers_opens_a_folder_of_format_3() -> None:
    """Its modules.json names the module by the path that it had then."""
    plain = SentenceTransformer(str(FORMAT3), trust_remote_code=True, device="cpu")
    ours = PromptEmbedder.from_pretrained(FORMAT3, device="cpu")
    np.testing.assert_array_equal(plain.encode(TEXTS, prompt=COMPILED), ours.encode(TEXTS, prompt=COMPILED))


@pytest.mark.integration
def test_module_paths_of_earlier_versions_name_the_modules_of_today() -> None:
    """In a process that has imported nothing of the library, as in one that calls sentence-transformers alone."""
    code = (
        "from sentence_transformers.util import import_from_string\n"
        "for path in ('models.dual_encoder.DualEncoder', 'model.dual_encoder.DualEncoder',\n"
        "             'models.static_encoder.StaticEncoder', 'models.pooled_encoder.PooledEncoder',\n"
        "             'model.baselines.StaticEncoder', 'model.baselines.PooledEncoder'):\n"
        "    found = import_from_string(f'promptembedder.{path}')\n"
        "    import promptembedder.model\n"
        "    assert found is getattr(promptembedder.model, path.rpartition('.')[2]), path\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sentence_transformers_opens_a_model_saved_under_an_earlier_module_path(tmp_path: Path) -> None:
    """The dual encoder was a module of `promptembedder.model` when format 4 was new."""
    model = PromptEmbedder.from_pretrained(FORMAT3, device="cpu")
    model.save(str(tmp_path))
    listed = (tmp_path / "modules.json").read_text(encoding="utf-8")
    assert "promptembedder.method.dual_encoder.DualEncoder" in listed
    earlier = listed.replace("promptembedder.method.dual_encoder", "promptembedder.model.dual_encoder")
    (tmp_path / "modules.json").write_text(earlier, encoding="utf-8")
    hash_files(tmp_path)
    plain = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(plain.encode(TEXTS, prompt=COMPILED), model.encode(TEXTS, prompt=COMPILED))


def test_settings_of_format_3_keep_their_values_under_their_new_names() -> None:
    saved = json.loads((FORMAT3 / MANIFEST_NAME).read_text(encoding="utf-8"))["config"]
    config = read_manifest(FORMAT3).config
    assert config["prompter"]["init_text"] == saved["prompter"]["anchor"] == "Embed the text"
    assert {new: config[new] for old, new in RENAMED_SETTINGS.items() if old in saved} == {
        "deep_prompt_interval": 1,
        "deep_prompt_rank": 2,
        "early_exit_fraction": 0.7,
        "text_pooling_weight": 0.5,
        "text_pooling_layer": 1,
        "whitening_rank": 2,
    }


def test_model_of_format_3_saved_again_is_of_format_4_and_equal(tmp_path: Path) -> None:
    model = PromptEmbedder.from_pretrained(FORMAT3, device="cpu")
    model.save(str(tmp_path / "again"), create_model_card=False)
    text = (tmp_path / "again" / MANIFEST_NAME).read_text(encoding="utf-8")
    assert json.loads(text)["format"] == 4
    for old in RENAMED_SETTINGS:
        assert f'"{old}":' not in text
    for file in ("alignment.safetensors", "prompter.safetensors"):
        with safe_open(tmp_path / "again" / file, framework="pt") as tensors:
            for name in list(tensors.keys()):
                assert name == migrate_tensor_name(name)
    again = PromptEmbedder.from_pretrained(tmp_path / "again", device="cpu")
    for instruction in (COMPILED, "Say what it is about"):
        np.testing.assert_array_equal(
            again.encode(SELF_TEST_TEXT, prompt=instruction), model.encode(SELF_TEST_TEXT, prompt=instruction)
        )


def test_migration_is_idempotent_and_leaves_other_values_alone() -> None:
    old = {"prompter": {"anchor": "a"}, "exit_depth": 0.5, "pooling": "last", "reader": None}
    new = {"prompter": {"init_text": "a"}, "early_exit_fraction": 0.5, "pooling": "last", "reader": None}
    assert migrate_settings(old) == new == migrate_settings(new)
    assert migrate_tensor_name("readout.centre") == "text_pooling.centre"
    assert migrate_tensor_name("deep.up") == "deep.up"


def save_with_conditioning(model: PromptEmbedder, folder: Path, version: int) -> None:
    """Save a model whose template begins with the text in the form that `conditioning: instruction_and_text` had."""
    model.save(str(folder), create_model_card=False)
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    prompter = content["config"]["prompter"]
    prompter["template"] = prompter["template"].removeprefix("{text}\n\n")
    content["config"]["conditioning"] = "instruction_and_text"
    del content["sha256"]
    path.write_text(json.dumps({**content, "format": 2}), encoding="utf-8")
    if version == 4:
        write_manifest(folder, read_manifest(folder))


@pytest.mark.parametrize("version", [2, 4])
def test_saved_conditioning_on_the_text_becomes_a_template_with_the_same_vectors(
    version: int, new_model: Callable[..., PromptEmbedder], tmp_path: Path
) -> None:
    model = new_model(with_text=True)
    save_with_conditioning(model, tmp_path / "model", version)
    loaded = PromptEmbedder.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.encoder.config == model.encoder.config
    np.testing.assert_array_equal(loaded.encode(TEXTS, prompt=COMPILED), model.encode(TEXTS, prompt=COMPILED))


def test_prompts_of_a_migrated_template_are_text_blank_line_and_old_template() -> None:
    old = {"conditioning": "instruction_and_text", "prompter": {"template": "T {instruction}"}, "pooling": "last"}
    new = {"prompter": {"template": "{text}\n\nT {instruction}"}, "pooling": "last"}
    assert migrate_conditioning(old, template="unused") == new
    assert migrate_conditioning({"conditioning": "instruction_and_text"}, template="T {instruction}") == {
        "prompter": new["prompter"]
    }
    assert migrate_conditioning({"conditioning": "instruction", "pooling": "last"}, template="") == {"pooling": "last"}


def test_conditioning_in_a_recipe_gives_one_line_that_names_the_template() -> None:
    assert from_mapping(Recipe, {"model": {"conditioning": "instruction"}}) == Recipe()
    with pytest.raises(ConfigError) as caught:
        from_mapping(Recipe, {"model": {"conditioning": "instruction_and_text"}})
    assert "write {text} into model.prompter.template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_head_of_false_is_dropped_and_of_true_is_refused_in_one_line() -> None:
    assert from_mapping(Recipe, {"model": {"head": False}}) == Recipe()
    with pytest.raises(ConfigError) as caught:
        from_mapping(Recipe, {"model": {"head": True}})
    assert "setting 'model.head' has been removed. The linear head had no measured gain" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [3, 4])
def test_saved_model_with_a_head_is_refused_in_one_line(version: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FORMAT3, folder)
    content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert content["config"]["head"] is False  # dropped by the tests above
    content["config"]["head"] = True
    del content["sha256"]
    (folder / MANIFEST_NAME).write_text(json.dumps({**content, "format": 2}), encoding="utf-8")
    if version == 4:
        write_manifest(folder, read_manifest(folder))
    with pytest.raises(ConfigError, match="setting 'head' has been removed"):
        load_encoder(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"model": {"exit_depth": 0.7}}, "setting 'model.exit_depth' has been renamed. Use 'early_exit_fraction'"),
        (
            {"model": {"prompter": {"anchor": "a"}}},
            "'model.prompter.anchor' has been renamed. Use 'init_text'",
        ),
        ({"optim": {"anchor_learning_rate": 1e-3}}, "Use 'soft_prompt_learning_rate' instead."),
        ({"health": {}}, "setting 'health' has been renamed. Use 'monitor' instead."),
        ({"text_states": {}}, "setting 'text_states' has been renamed. Use 'text_cache' instead."),
        ({"data": {"held_out_wordings": 1}}, "Use 'held_out_variants' instead."),
        ({"baseline": {"wordings": []}}, "Use 'instruction_variants' instead."),
    ],
)
def test_renamed_recipe_key_gives_one_line_with_the_new_name(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Recipe, recipe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
