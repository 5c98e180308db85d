"""Laws of stored vectors: reduced vectors keep their cosines, and every file holds the same numbers."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from promptembedder.batch import VectorFormat, atomic_embedding_file, embedding_schema
from promptembedder.errors import ConfigError, DataError


@pytest.fixture
def vectors() -> np.ndarray:
    """Unit vectors [instructions texts dim]."""
    drawn = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return unit @ unit.T


def test_fewer_dimensions_are_the_first_ones_at_length_one(vectors: np.ndarray) -> None:
    reduced = VectorFormat(dimensions=8).reduce(vectors)
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(cosines(reduced[0]), cosines(vectors[0, :, :8]), atol=1e-6)


def test_int8_vectors_keep_their_cosines(vectors: np.ndarray) -> None:
    reduced = VectorFormat(precision="int8").reduce(vectors)
    assert (reduced.dtype, np.abs(reduced).max()) == (np.int8, 127)
    np.testing.assert_allclose(cosines(reduced[0].astype(float)), cosines(vectors[0]), atol=0.01)


def test_binary_vectors_are_those_of_sentence_transformers(vectors: np.ndarray) -> None:
    expected = quantize_embeddings(vectors[0], precision="binary")
    np.testing.assert_array_equal(VectorFormat(precision="binary").reduce(vectors)[0], expected)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
@pytest.mark.parametrize("instructions", [1, 2])
def test_each_kind_of_file_holds_the_same_numbers(
    tmp_path: Path, vectors: np.ndarray, precision: str, instructions: int
) -> None:
    form = VectorFormat(dimensions=16, precision=precision)
    own = vectors[:instructions]
    schema = embedding_schema(instructions=instructions, dim=32, metadata={}, vector_format=form)
    for name in ("a.parquet", "a.jsonl", "a.npy"):
        with atomic_embedding_file(tmp_path / name, schema, form) as file:
            file.append(["0", "1"], own[:, :2])
            file.append(["2", "3", "4"], own[:, 2:])
    expected = form.reduce(own)
    array = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(array, expected[0] if instructions == 1 else expected.swapaxes(0, 1))
    assert array.dtype == expected.dtype
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    for rows in (lines, table):
        assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
        for place, name in enumerate(schema.names[1:]):
            np.testing.assert_array_equal([row[name] for row in rows], expected[place])


def test_vectors_that_are_not_finite_are_refused_in_every_format(tmp_path: Path, vectors: np.ndarray) -> None:
    vectors[0, 1, 3] = np.nan
    form = VectorFormat(precision="int8")
    schema = embedding_schema(instructions=2, dim=32, metadata={}, vector_format=form)
    for name in ("a.parquet", "a.jsonl", "a.npy"):
        with (
            pytest.raises(DataError, match="embedding of row '1' is not finite"),
            atomic_embedding_file(tmp_path / name, schema, form) as file,
        ):
            file.append(list("01234"), vectors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions must be at least 1, got 0"),
        ({"precision": "int4"}, "precision must be one of float32, int8, binary, got 'int4'"),
        ({"dimensions": 33}, "dimensions must be between 1 and 32, got 33"),
        ({"dimensions": 12, "precision": "binary"}, "multiple of 8 dimensions, got 12. Set dimensions=8"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VectorFormat(**options).check(32)
