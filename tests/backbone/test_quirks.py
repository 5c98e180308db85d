"""The table of families, against the families themselves."""

import pytest
import torch

from promptembedder.backbone import RANDOM_MODELS, architecture_quirks
from promptembedder.backbone.random_models import random_model


@pytest.mark.parametrize("name", [name for name in RANDOM_MODELS if name.startswith("tiny-")])
def test_the_expected_scale_is_what_the_embedding_module_multiplies_by(name: str) -> None:
    model = random_model(name, layers=None, dtype=torch.float32)
    module = model.get_input_embeddings()
    ids = torch.arange(20)
    scale = architecture_quirks(model.config).expected_scale(model.config)
    torch.testing.assert_close(module(ids), scale * module.weight[ids])


def test_only_gemma_scales_its_table() -> None:
    scales = {name: architecture_quirks(RANDOM_MODELS[name]()).table_scale for name in RANDOM_MODELS}
    assert {name for name, scale in scales.items() if scale != "none"} == {"tiny-gemma3"}


@pytest.mark.parametrize("name", [name for name in RANDOM_MODELS if name.startswith("tiny-")])
def test_learned_positions_are_a_table_among_the_weights(name: str) -> None:
    model = random_model(name, layers=1, dtype=torch.float32)
    has_table = any(weight.shape[0] == model.config.max_position_embeddings for weight in model.parameters())
    assert architecture_quirks(model.config).learned_positions == has_table
