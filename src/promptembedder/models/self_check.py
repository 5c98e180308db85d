"""Whether a loaded model still computes what it did when it was saved."""

import logging
from pathlib import Path

import numpy as np

from promptembedder.errors import WeightsError
from promptembedder.models.embedder import PromptEmbedder
from promptembedder.models.self_test import read_self_test

__all__ = ["check_self_test"]

logger = logging.getLogger(__name__)


def check_self_test(model: PromptEmbedder, folder: Path) -> float | None:
    """The cosine between the vector that was saved with the model and the one it computes now; None without one.

    Raises:
        WeightsError: They differ by more than another machine explains, or the vector is not finite.
        ModelFormatError: The saved one cannot be read.
    """
    saved, ref = read_self_test(folder), model.encoder.reader.ref
    if saved is None or saved.reader != ref.fingerprint:
        logger.info("the model brings no self-test for this reader")
        return None
    if model.encoder.prompter is None and saved.instruction not in model.encoder.store.compiled:
        return None
    now = model.encoder.self_test(saved.instruction)
    if now is None:
        raise WeightsError("the model's vectors are not finite. Load an earlier checkpoint, or use dtype float32.")
    cosine = saved.check(np.asarray(now.vector, dtype=np.float32), dtype=now.dtype)
    logger.info("self-test passed, cosine %.6f to the vector that was saved", cosine)
    return cosine
