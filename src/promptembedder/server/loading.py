"""From a saved model to a service that has shown that it computes."""

import logging
from pathlib import Path

from promptembedder.model import PromptEmbedder, check_self_test
from promptembedder.server.telemetry import ServerMetrics
from promptembedder.server.service import EmbeddingService
from promptembedder.server.config import ServerSettings

__all__ = ["load_service"]

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
    check_self_test(model, folder)
    service = EmbeddingService(model, settings, metrics)
    metrics.max_batch_tokens = service.max_batch_tokens
    service.warm_up()
    return service
