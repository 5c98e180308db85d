"""State shared by the parts of a server."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from promptembedder.server.errors import ApiError
from promptembedder.server.service import EmbeddingService
from promptembedder.server.telemetry import ServerMetrics

__all__ = ["Phase", "ServerState"]


class Phase(StrEnum):
    """Phase of a server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class ServerState:
    """State shared by the parts of one server.

    Attributes:
        metrics: Metrics of the server.
        phase: Current phase.
        service: Service of the loaded model. None while the model loads.
        in_flight: Number of active requests.
        stop: Stops the server. Set by `run_server`.
    """

    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    phase: Phase = Phase.LOADING
    service: EmbeddingService | None = None
    in_flight: int = 0
    stop: Callable[[], None] = lambda: None

    def ready(self) -> EmbeddingService:
        """Return the service.

        Raises:
            ApiError: 503 if the model is loading, the server is draining, or the computing thread has died.
        """
        if self.phase is Phase.LOADING or self.service is None:
            raise ApiError(503, "loading", "the model is loading. Try again soon.", retry_after_s=5)
        if self.phase is Phase.DRAINING:
            raise ApiError(503, "draining", "the server is shutting down. Try another one.", retry_after_s=5)
        if not self.service.engine.alive:
            raise ApiError(503, "failed", "the computing thread has ended. Restart the server.")
        return self.service
