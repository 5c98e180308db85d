"""Laws of `promptembedder compile`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder
from promptembedder.storage import read_manifest

pytestmark = pytest.mark.slow

COMPILED, NEW, NEWER = "Find texts on the same topic", "Sort by language", "Überschriften [zu] Texten finden"
TEXTS = ["a river and its mouth", "", "end"]

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture
def model(saved_model: Path, tmp_path: Path) -> Path:
    """A copy of the saved model, with things beside it that are not the model's own."""
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    (folder / "README.md").write_text("written by hand")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "weights").write_bytes(b"large")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compiled_vectors_are_generated_vectors(run: Run, model: Path) -> None:
    generated = PromptEmbedder.from_pretrained(model, device="cpu").encode_instructions(TEXTS, [NEW, NEWER])
    assert run("compile", model, "--instruction", NEW, "--instruction", f" {NEWER}\n").exit_code == 0
    served = PromptEmbedder.from_pretrained(model, with_prompter=False, device="cpu")
    assert served.encoder.prompter is None
    np.testing.assert_allclose(served.encode_instructions(TEXTS, [NEW, NEWER]), generated, atol=1e-6)


def test_in_place_only_the_soft_tokens_and_the_manifest_change(run: Run, model: Path) -> None:
    before, provenance = contents(model), read_manifest(model).provenance
    result = run("compile", model, "--instruction", NEW, "--instruction", NEW, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)  # nothing else is on stdout
    assert (said["model"], said["instructions"]) == (str(model), [COMPILED, NEW])
    levels = 3  # the input, and each of the two deeper layers
    assert said["bytes"] == 2 * 5 * levels * 40 * 4
    after = contents(model)
    assert {name for name in after if after[name] != before.get(name)} == {
        "soft_tokens.safetensors",
        "promptembedder.json",
    }
    assert before.keys() == after.keys()
    assert read_manifest(model).provenance == provenance


def test_a_new_folder_is_the_whole_model_and_the_old_one_stays(run: Run, model: Path, tmp_path: Path) -> None:
    before, output = contents(model), tmp_path / "new"
    assert run("compile", model, "--instruction", NEW, "-o", output).exit_code == 0
    assert contents(model) == before
    after = contents(output)
    assert after.keys() == {name for name in before if "checkpoint" not in name}
    assert after["README.md"] == b"written by hand"
    assert after["prompter.safetensors"] == before["prompter.safetensors"]
    old, new = (PromptEmbedder.from_pretrained(folder, device="cpu") for folder in (model, output))
    assert new.prompts == old.prompts
    np.testing.assert_array_equal(new.encode(TEXTS, prompt=COMPILED), old.encode(TEXTS, prompt=COMPILED))


def test_the_output_may_be_the_model_itself(run: Run, model: Path) -> None:
    assert run("compile", model, "--instruction", NEW, "-o", model / "." / "").exit_code == 0
    assert read_manifest(model).instructions == [COMPILED, NEW]


def test_search_needs_no_prompter_after_compile(
    run: Run, model: Path, corpus: Path, loaded: list[PromptEmbedder]
) -> None:
    words = ("search", model, "x", "--corpus", corpus, "--json")
    before = json.loads(run(*words).stdout)
    assert loaded[-1].encoder.prompter is not None
    defaults = (before["instruction"], loaded[-1].encoder.config.default_instruction)
    assert run("compile", model, *(word for text in defaults for word in ("--instruction", text))).exit_code == 0
    after = json.loads(run(*words).stdout)
    assert loaded[-1].encoder.prompter is None
    assert [hit["id"] for hit in after["hits"]] == [hit["id"] for hit in before["hits"]]


def test_people_see_every_compiled_instruction(run: Run, model: Path) -> None:
    result = run("compile", model, "--instruction", NEWER)
    assert result.stdout.splitlines()[-2:] == [f"  {COMPILED}", f"  {NEWER}"]
    assert result.stderr == ""


def test_bad_input_is_one_line_and_exit_code_2_and_changes_nothing(
    refused: Refused, model: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    assert "is not a saved model" in refused("compile", tmp_path / "nowhere", "--instruction", NEW)
    assert "blank" in refused("compile", model, "--instruction", NEW, "--instruction", " ")
    (tmp_path / "taken").mkdir()
    assert "exists" in refused("compile", model, "--instruction", NEW, "-o", tmp_path / "taken")
    assert contents(tmp_path) == before


def test_an_unknown_key_in_a_file_of_options_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    config = tmp_path / "compile.yaml"
    config.write_text("prompt: [one]\n")
    result = run("compile", model, "--instruction", NEW, "--config", config)
    assert result.exit_code == 2
    assert "prompt" in result.stderr


def test_a_file_of_options_does_what_the_options_do(run: Run, model: Path, tmp_path: Path) -> None:
    config = tmp_path / "compile.yaml"
    output = tmp_path / "new"
    config.write_text(json.dumps({"model": str(model), "instruction": [NEW, NEWER], "output": str(output)}))
    assert json.loads(run("compile", "--config", config, "--json").stdout)["instructions"] == [COMPILED, NEW, NEWER]
    assert read_manifest(output).instructions == [COMPILED, NEW, NEWER]
