"""Nested states come back bit for bit, and nothing in them is executed."""

import json
import random
from pathlib import Path

import pytest
import torch

from promptembedder.errors import ModelFormatError
from promptembedder.storage.tensors import load_state, save_state


def test_save_then_load_is_identity(tmp_path: Path) -> None:
    state = {
        "state": {0: {"step": 3, "moment": torch.tensor([0.1, -0.0])}, 1: {}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "name": None, "fused": True}],
        "$tensor": "a key like our own",
        "generator": random.Random(0).getstate(),
    }
    save_state(tmp_path, "a", state)
    found = load_state(tmp_path, "a")
    moment, expected = found["state"][0].pop("moment"), state["state"][0].pop("moment")  # type: ignore[index]
    assert torch.equal(moment, expected)
    assert found == state
    assert isinstance(found["groups"][0]["betas"], tuple)
    random.Random().setstate(found["generator"])  # refuses lists


def test_what_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must not contain a .*Path"):
        save_state(tmp_path, "a", {"folder": tmp_path})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b'{"$other": 1}', b'{"$tensor": "7"}', b'{"$items": 3}', b'{"a": 1, "b": 2}', b"[" * 5000],
)
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes) -> None:
    save_state(tmp_path, "a", {"x": torch.zeros(1)})
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"a.json is damaged"):
        load_state(tmp_path, "a")


def test_nesting_has_an_end(tmp_path: Path) -> None:
    save_state(tmp_path, "a", {})
    (tmp_path / "a.json").write_text(json.dumps(json.loads("[" * 100 + "]" * 100)))
    with pytest.raises(ModelFormatError, match="nested too deeply"):
        load_state(tmp_path, "a")
