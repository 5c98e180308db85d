"""Laws of `promptembedder export`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from promptembedder import ModelConfig, PromptEmbedder
from promptembedder.backbone import BackboneConfig
from promptembedder.export import reference
from promptembedder.method import PrompterConfig

COMPILED, SECOND = "Find texts on the same topic", "Sort by language"
TEXTS = ["a river and its mouth", "", "Grüße 🙂", "long " * 30]

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.mark.integration
@pytest.mark.parametrize("heads", [0, 2])
def test_onnx_is_the_whole_model(backbone_folder: Path, tmp_path: Path, heads: int) -> None:
    """Deep soft tokens, the text's own states and all; in its own process: type checks slow tracing down."""
    backbone = BackboneConfig(source=str(backbone_folder))
    config = ModelConfig(prompter=PrompterConfig(backbone=backbone), reader=backbone, instruction_heads=heads)
    model = PromptEmbedder.create(config=config, device="cpu")
    model.encoder.reader.float()
    model.compile_instructions([COMPILED])
    model.save(str(tmp_path / "model"), create_model_card=False)
    words = ("export", tmp_path / "model", "-o", tmp_path / "out", "--format", "onnx", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "promptembedder", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["max_difference"] < 1e-5
    assert said["reproduces"] == "the model's vector, whole"
    assert set(said["bytes"]) >= {"model.onnx", "export.json", "reference.py", "tokenizer.json"}
    expected = model.encode(TEXTS, prompt=COMPILED)
    found = reference.embed(reference.read_export(tmp_path / "out"), TEXTS, COMPILED, engine="onnx")
    assert np.abs(found - expected).max() < 1e-5
    with pytest.raises(SystemExit, match="Use --engine onnx"):
        reference.embed(reference.read_export(tmp_path / "out", str(tmp_path / "out")), TEXTS, COMPILED)


def test_what_cannot_be_exported_is_one_line_and_exit_code_2(
    run: Run, refused: Refused, saved_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    words = ("export", model, "-o", tmp_path / "out")
    assert "deep_prompt_interval 1" in refused(*words, "--format", "soft-tokens")
    told = refused(*words, "--instruction", SECOND)
    assert f"{SECOND!r} is not compiled. Run: promptembedder compile {model}" in told
    assert "unknown --format 'gguf'" in refused(*words, "--format", "gguf")
    assert "Omit --leave-out-text" in refused(*words, "--format", "onnx", "--leave-out-text")
    assert "is not a saved model" in refused("export", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert run("compile", model, "--instruction", SECOND).exit_code == 0
    # a default model needs a graph: its soft tokens alone do not give its vectors, and the default format refused it
    assert "an ONNX graph has one instruction" in refused(*words)
    assert "Choose one with --instruction" in refused(*words, "--format", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "Example: promptembedder export" in run("export", "--help").stdout
