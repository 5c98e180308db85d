"""Loading, self-test and warm-up of a saved model for serving."""

import logging
from pathlib import Path

from promptembedder.model import PromptEmbedder, check_self_test
from promptembedder.server.config import ReadingConfig, ServerConfig
from promptembedder.server.service import EmbeddingService
from promptembedder.server.telemetry import ServerMetrics

__all__ = ["load_service"]

logger = logging.getLogger(__name__)


def load_service(
    folder: Path,
    config: ServerConfig,
    metrics: ServerMetrics,
    *,
    reading: ReadingConfig | None = None,
) -> EmbeddingService:
    """Load the model in `folder`, run its self-test and warm it up.

    The prompter is loaded only for free instructions.

    Args:
        reading: How the reader is loaded and run. If None, as in training.

    Raises:
        ModelFormatError: If the model folder is incomplete, or has no alignment for this reader.
        BackboneError: If a backbone is missing.
        ConfigError: If the model cannot be served with this configuration.
        WeightsError: If the self-test gives other vectors than when the model was saved.
    """
    reading = reading or ReadingConfig()
    model = PromptEmbedder.from_pretrained(
        folder,
        reader=reading.reader,
        quantization=reading.quantization,
        with_prompter=config.instructions == "free",
        device=reading.device,
    )
    check_self_test(model, folder)
    if reading.early_exit_fraction is not None:
        model.early_exit_fraction = reading.early_exit_fraction
    if reading.max_length is not None:
        model.max_seq_length = reading.max_length
    service = EmbeddingService(model, config, metrics)
    metrics.max_batch_tokens = service.max_batch_tokens
    service.warm_up()
    return service
