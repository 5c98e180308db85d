"""Which number format a backbone runs in."""

import pytest
import torch

from promptembedder.backbone import BackboneConfig, load_backbone, resolve_dtype
from promptembedder.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_named_dtype_is_that_dtype(name: str, dtype: torch.dtype) -> None:
    assert resolve_dtype(name) is dtype


def test_auto_is_float32_or_bfloat16_and_the_same_each_time() -> None:
    """Half precision overflows; a measurement of speed used to differ from run to run."""
    found = {resolve_dtype("auto") for _ in range(5)}
    assert len(found) == 1
    assert found <= {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_auto_is_float32_where_nothing_is_known(device: str) -> None:
    assert resolve_dtype("auto", device=device) is torch.float32


@pytest.mark.parametrize("name", ["float64", "fp16", "", "Auto"])
def test_an_unknown_dtype_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown dtype '{name}'. Use one of: auto, float32, bfloat16, float16"):
        resolve_dtype(name)


def test_a_backbone_has_the_dtype_that_its_reference_names() -> None:
    for name in ("float32", "bfloat16", "auto"):
        backbone = load_backbone(BackboneConfig(source="random:tiny-llama", dtype=name), head=False)
        assert {str(weight.dtype) for weight in backbone.model.parameters()} == {f"torch.{backbone.identity.dtype}"}
