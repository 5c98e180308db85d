"""Laws of `export_soft_tokens`: a stock engine, told by the export alone, gives the model's own vectors."""

import ast
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from promptembedder import PromptEmbedder
from promptembedder.errors import ConfigError, DataError
from promptembedder.export import export_soft_tokens, select_instructions

pytestmark = pytest.mark.slow

FIRST, SECOND = "Find the same topic", "Sortiere nach Sprache"
TEXTS = ["a river and its mouth", "", "Grüße 🙂", "<|end|> is text, <|start|> too", "half \ud83d", "long " * 30]
NewModel = Callable[..., PromptEmbedder]
STOCK: dict[str, Any] = {"deep_prompt_interval": 0, "text_pooling_weight": 0.0, "max_seq_length": 60}


def exported(model: PromptEmbedder, folder: Path, **options: Any) -> dict[str, Any]:
    """Export to `folder`; returns the names in the reference script that lies there."""
    export_soft_tokens(model, folder, instructions=[FIRST, SECOND], **options)
    return runpy.run_path(str(folder / "reference.py"), run_name="reference")


def largest_difference(script: dict[str, Any], folder: Path, model: PromptEmbedder) -> float:
    """Between the script's vectors and the model's own, over both instructions."""
    export = script["read_export"](folder)
    found = [script["embed"](export, TEXTS, instruction) for instruction in (FIRST, SECOND)]
    expected = [model.encode(TEXTS, prompt=instruction) for instruction in (FIRST, SECOND)]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # else a mix-up of instructions would not show
    return float(np.abs(np.stack(found) - np.stack(expected)).max())


@pytest.mark.parametrize("changes", [{}, {"pooling": "last"}, {"placement": "prefix"}, {"text_start": ""}])
def test_the_script_gives_the_models_vectors(new_model: NewModel, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = new_model(**STOCK, **changes)
    script = exported(model, tmp_path / "out")
    assert largest_difference(script, tmp_path / "out", model) < 1e-5


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2"])
def test_scaled_inputs_windows_and_learned_positions_are_exported_too(
    new_model: NewModel, tmp_path: Path, name: str
) -> None:
    model = new_model(name, **STOCK)
    script = exported(model, tmp_path / "out")
    assert largest_difference(script, tmp_path / "out", model) < 1e-5


def test_without_the_text_it_is_the_same_model_with_text_weight_0(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model(**{**STOCK, "text_pooling_weight": 1.0})
    with pytest.raises(ConfigError, match="text_pooling_weight 1 .*--leave-out-text.*--format onnx"):
        export_soft_tokens(model, tmp_path / "out", instructions=[FIRST])
    script = exported(model, tmp_path / "out", leave_out_text=True)
    whole = model.encode(TEXTS, prompt=FIRST)
    assert model.encoder.text_pooling is not None  # the export has left the model as it was
    model.encoder.text_pooling = None
    assert np.abs(model.encode(TEXTS, prompt=FIRST) - whole).max() > 1e-2
    assert largest_difference(script, tmp_path / "out", model) < 1e-5
    assert "text_pooling_weight 0" in json.loads((tmp_path / "out" / "export.json").read_text())["reproduces"]


def test_the_tensors_are_the_soft_tokens_by_instruction(new_model: NewModel, tmp_path: Path) -> None:
    model = new_model(**STOCK)
    exported(model, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    tensors = load_file(tmp_path / "out" / "soft_tokens.safetensors")
    for entry in settings["instructions"]:
        torch.testing.assert_close(tensors[entry["tensor"]], model.soft_tokens(entry["instruction"]))
    assert [entry["instruction"] for entry in settings["instructions"]] == [FIRST, SECOND]
    assert settings["backbone"]["fingerprint"] == "random:tiny-llama"


def test_vllm_is_given_the_assembled_vectors_and_its_states_are_finished_alike(
    new_model: NewModel, tmp_path: Path
) -> None:
    """Everything of the vLLM way but the engine itself: transformers' states stand in for what vLLM returns."""
    model = new_model(**STOCK, pooling="last")
    script = exported(model, tmp_path / "out")
    given: list[torch.Tensor] = []

    def last_states(export: Any, sequences: list[torch.Tensor], dtype: str) -> Iterator[torch.Tensor]:
        given.extend(sequences)
        for states in script["_transformers_states"](export, sequences, dtype):
            yield states[-1:]  # vLLM's LAST pooling hands out one row

    script["_engine_vectors"].__globals__["_vllm_states"] = last_states
    found = script["embed"](script["read_export"](tmp_path / "out"), TEXTS, FIRST, engine="vllm")
    assert np.abs(found - model.encode(TEXTS, prompt=FIRST)).max() < 1e-5
    table, soft = model.encoder.reader.input_embeddings, model.soft_tokens(FIRST)
    ids = model.encoder.reader.tokenizer.tokenize([TEXTS[0]], max_length=60).ids[0]
    torch.testing.assert_close(given[1], torch.cat([table[ids], soft]))


def test_the_script_needs_no_promptembedder_and_refuses_another_backbone(
    new_model: NewModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = new_model(**STOCK)
    exported(model, tmp_path / "out")
    (tmp_path / "texts.txt").write_text("one\ntwo words\n", encoding="utf-8")
    source = (tmp_path / "out" / "reference.py").read_text(encoding="utf-8")
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert not any(str(name).startswith("promptembedder") for name in imported)
    script = runpy.run_path(str(tmp_path / "out" / "reference.py"), run_name="reference")
    words = [str(tmp_path / "texts.txt"), "--output", str(tmp_path / "v.npy")]
    with pytest.raises(SystemExit, match="several instructions"):
        script["main"](words)
    script["main"]([*words, "--instruction", FIRST])
    assert "vectors 2 x 32 (texts x dimensions)" in capsys.readouterr().out
    assert np.abs(np.load(tmp_path / "v.npy") - model.encode(["one", "two words"], prompt=FIRST)).max() < 1e-5
    other = new_model(**STOCK, text_start="x")
    with torch.no_grad():
        other.encoder.reader.input_embeddings.mul_(3)
    other.encoder.reader.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="wrong embedding of the self-test"):
        script["embed"](script["read_export"](tmp_path / "out", str(tmp_path / "other")), TEXTS, FIRST)
    with pytest.raises(SystemExit, match=r"'nothing' is not in this export.*Find the same topic"):
        script["embed"](script["read_export"](tmp_path / "out"), TEXTS, "nothing")


def test_what_an_engine_cannot_compute_is_refused_by_the_name_of_its_setting(
    new_model: NewModel, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError,
        match="deep_prompt_interval 1 .*text_pooling_weight 1 .*deep_prompt_interval: 0, text_pooling_weight: 0",
    ):
        export_soft_tokens(new_model(), tmp_path / "out", instructions=[FIRST])
    with pytest.raises(
        ConfigError,
        match="early_exit_fraction 0.34 stops texts before the last layer.*Train with early_exit_fraction: 1",
    ):
        export_soft_tokens(new_model(**STOCK, early_exit_fraction=0.34), tmp_path / "out", instructions=[FIRST])
    by_text = new_model(**STOCK, with_text=True)
    with pytest.raises(ConfigError, match="Train with a prompter.template without {text}"):
        export_soft_tokens(by_text, tmp_path / "out", instructions=[FIRST])
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="exists"):
        export_soft_tokens(new_model(**STOCK), tmp_path / "taken", instructions=[FIRST])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_only_compiled_instructions_can_be_chosen() -> None:
    assert select_instructions([FIRST, SECOND], [], "m") == [FIRST, SECOND]
    assert select_instructions([FIRST, SECOND], [f" {SECOND}\n", SECOND], "m") == [SECOND]
    with pytest.raises(ConfigError, match="'else' is not compiled. Run: promptembedder compile m --instruction"):
        select_instructions([FIRST], ["else"], "m")
    with pytest.raises(ConfigError, match="no compiled instruction"):
        select_instructions([], [], "m")
