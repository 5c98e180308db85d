"""Vectors that look like those of texts, and files as an embedding job writes them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TOPIC = "Find texts on the same topic"


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def clustered() -> Callable[..., np.ndarray]:
    """Unit vectors around a few directions: `clustered(500, dim=24, clusters=20, seed=0)`."""

    def made(rows: int, *, dim: int = 24, clusters: int = 20, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((clusters, dim))
        return unit(centres[rng.integers(0, clusters, rows)] + 0.5 * rng.standard_normal((rows, dim)))

    return made


@pytest.fixture
def write_vectors() -> Callable[..., Path]:
    """Writes a Parquet file as `embed` does; `columns` are further ones, `said` changes its metadata."""

    def written(
        path: Path,
        vectors: np.ndarray | Mapping[str, np.ndarray],
        *,
        ids: list[str] | None = None,
        columns: Mapping[str, Any] | None = None,
        said: Mapping[str, str | None] | None = None,
    ) -> Path:
        by_name = vectors if isinstance(vectors, Mapping) else {"embedding": vectors}
        rows = len(next(iter(by_name.values())))
        instructions = {name: TOPIC if i == 0 else f"Another one, {i}" for i, name in enumerate(by_name)}
        metadata = {
            "model": "runs/model",
            "model_sha256": "ab" * 32,
            "columns": json.dumps(instructions),
            **(said or {}),
        }
        arrays = {"id": pa.array(ids or [f"row {row}" for row in range(rows)], type=pa.string())}
        for name, value in by_name.items():
            flat = pa.array(np.ascontiguousarray(value).reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
        arrays |= {name: pa.array(values) for name, values in (columns or {}).items()}
        kept = {f"promptembedder.{key}": value for key, value in metadata.items() if value is not None}
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(arrays).replace_schema_metadata(kept), path, row_group_size=100)
        return path

    return written
