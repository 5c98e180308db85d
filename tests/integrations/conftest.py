"""A saved model that any process can open: its backbone lies beside it as files."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from promptembedder import PromptEmbedder

QUERIES = "Find the text that answers"
DOCUMENTS = "Represent what the text says"
TEXTS = ["a red house", "the cold river runs slowly", "an old song"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, lively_backbones: None) -> str:
    """A tiny model with weights away from their start."""
    import torch

    from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
    from promptembedder.backbone.random_models import random_model, random_tokenizer

    folder = tmp_path_factory.mktemp("integrations")
    random_model("tiny-llama", layers=None, dtype=torch.float32).save_pretrained(folder / "backbone")
    random_tokenizer().save_pretrained(folder / "backbone")
    backbone = BackboneConfig(source=str(folder / "backbone"), dtype="float32")
    config = ModelConfig(prompter=PrompterConfig(backbone=backbone, lora_rank=4, lora_alpha=8), reader=backbone)
    model = PromptEmbedder.create(config=config, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.encoder.trained_weights():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    model.save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="session")
def plain(model_folder: str) -> "PromptEmbedder":
    """The same model as sentence-transformers knows it: the reference."""
    from promptembedder import PromptEmbedder

    return PromptEmbedder.from_pretrained(Path(model_folder))


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """No model is held from an earlier test."""
    from promptembedder.integrations import forget_models

    forget_models()
    yield
    forget_models()
