"""A saved model that other processes can open."""

from pathlib import Path

import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.backbone.random_models import random_model, random_tokenizer

COMPILED, OTHER = "Find texts on the same topic", "Find the text that answers the question"


@pytest.fixture(scope="package")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its backbone is a folder: random weights that this process has changed would be others elsewhere."""
    folder = tmp_path_factory.mktemp("model")
    random_model("tiny-qwen3", layers=2, dtype=torch.float32).save_pretrained(folder / "backbone")
    random_tokenizer().save_pretrained(folder / "backbone")
    backbone = BackboneConfig(source=str(folder / "backbone"), dtype="float32")
    config = ModelConfig(prompter=PrompterConfig(backbone=backbone), reader=backbone)
    model = PromptEmbedder.create(config=config, device="cpu")
    model.compile_instructions([COMPILED])
    model.save(str(folder / "saved"))
    return folder / "saved"
