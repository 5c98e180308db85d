"""A GGUF that says what cannot be is refused before a foreign reader believes it."""

import struct
from pathlib import Path

import pytest

from benchmarks.faults.gguf import write_tiny_gguf
from promptembedder.backbone.gguf import check_gguf
from promptembedder.errors import BackboneError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path.read_bytes()


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BackboneError, match="cannot read 'tiny' as a GGUF model") as error:
        check_gguf(path, name="tiny")
    return str(error.value)


def test_a_sound_file_tells_its_numbers_and_shapes(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(whole)
    header = check_gguf(tmp_path / "a", name="tiny")
    assert header.numbers["llama.block_count"] == 1
    assert header.shapes["token_embd.weight"] == (32, 260)


@pytest.mark.parametrize("length", [1 << 30, 1 << 62, (1 << 64) - 1])
def test_an_array_longer_than_the_file_is_refused_at_once(whole: bytes, tmp_path: Path, length: int) -> None:
    """The format's own reader went through it item by item, for hours."""
    at = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8  # past the kinds of array and item
    refused(tmp_path / "a", whole[:at] + struct.pack("<Q", length) + whole[at + 8 :])


@pytest.mark.parametrize("key", ["llama.block_count", "llama.embedding_length", "llama.feed_forward_length"])
def test_a_model_larger_than_its_tensors_is_refused(whole: bytes, tmp_path: Path, key: str) -> None:
    """It would be built before its weights were missed."""
    at = whole.index(key.encode()) + len(key) + 4
    words = refused(tmp_path / "a", whole[:at] + struct.pack("<I", 1 << 31) + whole[at + 4 :])
    assert key in words


def test_every_shorter_file_is_refused(whole: bytes, tmp_path: Path) -> None:
    for size in (*range(0, 200, 7), *range(200, len(whole), 1999), len(whole) - 1):
        refused(tmp_path / "a", whole[:size])
