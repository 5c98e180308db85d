"""Dimensions and number format of stored vectors."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from promptembedder.errors import ConfigError

__all__ = ["WHOLE_VECTORS", "VectorFormat"]

PRECISIONS = ("float32", "int8", "binary")
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, kw_only=True)
class VectorFormat:
    """Dimensions and precision that vectors are reduced to before they are stored or printed.

    Attributes:
        dimensions: Number of first dimensions to keep. Vectors are normalized again. If None, all.
        precision: `float32`; `int8`, each vector scaled so that its largest value is 127 or -127, which leaves cosines
            unchanged up to rounding; or `binary`, one bit per dimension, packed into bytes as in sentence-transformers.
    """

    dimensions: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise ConfigError(f"dimensions must be at least 1, got {self.dimensions}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")

    def check(self, dim: int) -> None:
        """Check that vectors with `dim` dimensions can be reduced.

        Raises:
            ConfigError: If they have fewer dimensions, or if their number is not a multiple of 8 for `binary`.
        """
        kept = self.dimensions or dim
        if kept > dim:
            raise ConfigError(f"dimensions must be between 1 and {dim}, got {kept}.")
        if self.precision == "binary" and kept % 8:
            raise ConfigError(
                f"binary vectors need a multiple of 8 dimensions, got {kept}. Set dimensions={kept // 8 * 8}."
            )

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of a stored number."""
        return pa.float32() if self.precision == "float32" else pa.int8()

    def stored_width(self, dim: int) -> int:
        """Return how many numbers are stored for a vector with `dim` dimensions."""
        kept = self.dimensions or dim
        return kept // 8 if self.precision == "binary" else kept

    def reduce(self, vectors: np.ndarray) -> np.ndarray:
        """Reduce float32 vectors along the last axis."""
        if self.dimensions is not None and self.dimensions < vectors.shape[-1]:
            vectors = vectors[..., : self.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)
        if self.precision == "int8":
            largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), _TINY)
            return np.rint(127 * vectors / largest).astype(np.int8)
        if self.precision == "binary":
            return (np.packbits(vectors > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)
        return vectors


WHOLE_VECTORS = VectorFormat()
