"""From a saved model to a service that has shown that it computes."""

import logging
from pathlib import Path

import torch

from promptembedder.errors import WeightsError
from promptembedder.models import PromptEmbedder, read_self_test
from promptembedder.server.metrics import ServerMetrics
from promptembedder.server.service import EmbeddingService
from promptembedder.server.settings import ServerSettings

__all__ = ["load_service", "self_test"]

logger = logging.getLogger(__name__)


def load_service(
    folder: Path,
    settings: ServerSettings,
    metrics: ServerMetrics,
    *,
    reader: str | None = None,
    quantization: str | None = None,
    device: str | None = None,
) -> EmbeddingService:
    """The service of the model in `folder`, tested and warmed up; the prompter is loaded only for free instructions.

    Raises:
        ModelFormatError: The model is torn, or cannot be opened on this reader.
        BackboneError: A backbone is missing.
        ConfigError: The model cannot be served, or not with these settings.
        WeightsError: It does not compute what it did when it was saved.
    """
    model = PromptEmbedder.from_pretrained(
        folder,
        reader=reader,
        quantization=quantization,
        with_prompter=settings.instructions == "free",
        device=device,
    )
    self_test(model, folder)
    service = EmbeddingService(model, settings, metrics)
    metrics.max_batch_tokens = service.max_batch_tokens
    service.warm_up()
    return service


def self_test(model: PromptEmbedder, folder: Path) -> float | None:
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
    cosine = saved.check(torch.tensor(now.vector).numpy(), dtype=now.dtype)
    logger.info("self-test passed, cosine %.6f to the vector that was saved", cosine)
    return cosine
