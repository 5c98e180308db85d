"""A saved tiny model and the program, called as from a shell."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig

# typer hands callbacks an object of the base class of the one they must name: the suite's type checks would refuse it

COMPILED = "Find texts on the same topic"
TEXTS = ["a river and its mouth", "short", "", "Grüße 🙂", "two\nlines, [bold]\x1b[31mred", "short", "the end"]


@pytest.fixture(scope="package")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one compiled instruction and a prompt for queries. Copy it to change it."""
    torch.set_num_threads(1)  # on tensors this small, threads spend their time waiting for each other
    config = ModelConfig(
        prompter=PrompterConfig(backbone=BackboneConfig(source="random:tiny-llama", dtype="float32")),
        reader=BackboneConfig(source="random:tiny-qwen3", dtype="float32"),
    )
    model = PromptEmbedder.create(config=config, device="cpu")
    model.prompts["query"] = "Find the text that answers the question"
    model.compile_instructions([COMPILED])
    folder = tmp_path_factory.mktemp("models") / "saved"
    model.save(str(folder))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": f"doc-{row}", "text": text} for row, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run() -> Callable[..., Result]:
    """Calls the program with these words; what it raises by mistake is raised."""
    from promptembedder.cli.app import app

    def called(*words: object, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], env=env, catch_exceptions=False)

    return called


@pytest.fixture
def refused(run: Callable[..., Result]) -> Callable[..., str]:
    """Calls the program, checks that it stops with exit code 2 and one line on stderr, and returns that line."""

    def called(*words: object) -> str:
        result = run(*words)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return called


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[PromptEmbedder]:
    """The models that commands have loaded."""
    models: list[PromptEmbedder] = []
    load = PromptEmbedder.from_pretrained

    def noted(*args: object, **kwargs: object) -> PromptEmbedder:
        models.append(load(*args, **kwargs))  # type: ignore[arg-type]
        return models[-1]

    monkeypatch.setattr(PromptEmbedder, "from_pretrained", noted)
    return models
