"""Laws of the Parquet file that an embedding job writes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptembedder.batch import atomic_embedding_file, column_names, embedding_schema
from promptembedder.errors import DataError

VECTORS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # [instructions, texts, dim]


def test_one_instruction_has_one_plain_column_and_several_are_numbered() -> None:
    assert column_names(1) == ["embedding"]
    assert column_names(3) == ["embedding_0", "embedding_1", "embedding_2"]


def test_vectors_come_back_bit_for_bit_with_ids_and_metadata(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    with atomic_embedding_file(target, embedding_schema(instructions=2, dim=4, metadata={"model": "ümlaut"})) as file:
        file.append(["a", "b", "c"], VECTORS)
        file.append(["d"], VECTORS[:, :1])
    table = pq.read_table(target)
    assert table.schema.field("embedding_1").type == pa.list_(pa.float32(), 4)
    assert table.schema.metadata[b"promptembedder.model"] == "ümlaut".encode()
    assert table["id"].to_pylist() == ["a", "b", "c", "d"]
    for i in range(2):
        assert table[f"embedding_{i}"].to_pylist() == [*VECTORS[i].tolist(), VECTORS[i, 0].tolist()]
    assert pq.ParquetFile(target).num_row_groups == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused_by_the_id_of_its_row_and_leaves_nothing(
    tmp_path: Path, value: float
) -> None:
    broken = VECTORS.copy()
    broken[1, 2, 0] = value
    with (
        pytest.raises(DataError, match="'c' is not finite"),
        atomic_embedding_file(tmp_path / "out.parquet", embedding_schema(instructions=2, dim=4, metadata={})) as file,
    ):
        file.append(["a", "b", "c"], broken)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_the_caller_can_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(DataError, match="cannot write"),
        atomic_embedding_file(tmp_path / "file" / "out.parquet", embedding_schema(instructions=1, dim=4, metadata={})),
    ):
        pass
