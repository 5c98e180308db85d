"""Laws of saved tensors."""

from pathlib import Path

import pytest
import torch

from promptembedder.errors import ModelFormatError
from promptembedder.storage.tensors import load_tensors, save_tensors

TENSORS = {
    "weight": torch.randn(3, 4),
    "half": torch.randn(2).bfloat16(),
    "ids": torch.tensor([1, 2, 3]),
    "scalar": torch.tensor(2.5),
}


def test_save_then_load_is_identity(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", TENSORS)
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_in_a_graph_or_not_contiguous_are_saved_by_value(tmp_path: Path) -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    save_tensors(tmp_path / "a.safetensors", {"turned": (2 * weight).T, "part": TENSORS["weight"][:, 1]})
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(loaded["turned"], (2 * weight).T.detach())
    assert torch.equal(loaded["part"], TENSORS["weight"][:, 1])


def test_expected_names_and_shapes_are_accepted(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", TENSORS)
    load_tensors(tmp_path / "a.safetensors", {name: tensor.shape for name, tensor in TENSORS.items()})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"a": (3, 4), "b": (1,)}, r"1 tensors missing \['b'\], 0 not known"),
        ({}, r"0 tensors missing \[\], 1 not known \['a'\]"),
        ({"a": (4, 3)}, r"tensor 'a' has shape \[3, 4\], expected \[4, 3\]"),
    ],
)
def test_other_names_or_shapes_are_refused_by_name(tmp_path: Path, expected: dict, message: str) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3, 4)})
    with pytest.raises(ModelFormatError, match=message):
        load_tensors(tmp_path / "a.safetensors", {name: torch.Size(shape) for name, shape in expected.items()})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_the_name_of_its_tensor(tmp_path: Path, value: float) -> None:
    save_tensors(tmp_path / "a.safetensors", {"good": torch.ones(2), "bad": torch.tensor([1.0, value])})
    with pytest.raises(ModelFormatError, match="not finite in 'bad'. Use an earlier checkpoint"):
        load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 64])
def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"cannot read .*a\.safetensors"):
        load_tensors(tmp_path / "a.safetensors")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ModelFormatError, match="cannot read"):
        load_tensors(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="cannot read"):
        load_tensors(tmp_path / "none.safetensors")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelFormatError, match="cannot read"):
        load_tensors(tmp_path / "a.safetensors")
