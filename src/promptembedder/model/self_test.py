"""Self-test of a saved model: the embedding of one sentence, for comparison after loading."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from promptembedder.errors import ModelFormatError, WeightsError, first_line
from promptembedder.types import Float

__all__ = ["SELF_TEST_NAME", "SELF_TEST_TEXT", "SelfTest", "read_self_test"]

SELF_TEST_NAME = "self_test.json"
SELF_TEST_TEXT = "A river runs to the sea."
# An embedding changes by less than 1e-6 in float32 on another machine, 1e-4 in bfloat16, some thousandths in int8, and
# tenths with wrong weights, a wrong mask or a broken kernel.
_MIN_COSINE_SAME, _MIN_COSINE_OTHER = 0.999, 0.99


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Embedding of `SELF_TEST_TEXT` at the time of saving.

    Attributes:
        reader: Fingerprint of the reader.
        dtype: Dtype or quantization of the reader.
    """

    instruction: str
    reader: str
    dtype: str
    vector: Sequence[float]

    def write(self, folder: Path) -> None:
        """Write the self-test into the folder of a model."""
        content = asdict(self) | {"vector": [round(number, 7) for number in self.vector]}
        (folder / SELF_TEST_NAME).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def check(self, vector: Float[np.ndarray, " dim"], *, dtype: str) -> float:
        """Return the cosine between the saved embedding and `vector`, of the same text and instruction.

        Raises:
            WeightsError: If the cosine is lower than another machine or `dtype` explains.
        """
        saved = np.asarray(self.vector, dtype=np.float64)
        if saved.shape != vector.shape:
            raise WeightsError(f"the self-test has {len(saved)} numbers, the model gives {len(vector)}. Save it again.")
        lengths = float(np.linalg.norm(saved)) * float(np.linalg.norm(vector))
        cosine = float(saved @ vector.astype(np.float64)) / max(lengths, 1e-30)
        least = _MIN_COSINE_SAME if dtype == self.dtype else _MIN_COSINE_OTHER
        if not cosine >= least:
            raise WeightsError(
                f"the model does not compute what it did when it was saved: cosine {cosine:.4f} to the saved vector, "
                f"expected at least {least}. Try dtype float32, another device or other versions of torch."
            )
        return cosine


def read_self_test(folder: Path) -> SelfTest | None:
    """Read the self-test of a saved model, or return None if the model has none.

    Raises:
        ModelFormatError: If the file is damaged.
    """
    path = folder / SELF_TEST_NAME
    if not path.is_file():
        return None
    try:
        loaded = SelfTest(**json.loads(path.read_text(encoding="utf-8")))
        words = isinstance(loaded.instruction, str) and isinstance(loaded.reader, str) and isinstance(loaded.dtype, str)
        numbers = isinstance(loaded.vector, list) and all(type(number) in (int, float) for number in loaded.vector)
        fits = words and numbers and all(math.isfinite(number) for number in loaded.vector)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: {first_line(error)}. Save or download the model again.") from error
    if not fits:
        raise ModelFormatError(f"{path} is damaged: it holds other values than a self-test. Save the model again.")
    return loaded
