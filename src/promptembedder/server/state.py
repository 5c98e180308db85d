"""Where a server stands: loading, ready, draining or failed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from promptembedder.server.errors import ApiError
from promptembedder.server.telemetry import ServerMetrics
from promptembedder.server.service import EmbeddingService

__all__ = ["Phase", "ServerState"]


class Phase(StrEnum):
    """Of a server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class ServerState:
    """What the parts of one server share.

    Attributes:
        in_flight: Requests whose answer is under way.
        stop: Ends the server; set by whoever runs it.
    """

    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    phase: Phase = Phase.LOADING
    service: EmbeddingService | None = None
    in_flight: int = 0
    stop: Callable[[], None] = lambda: None

    def ready(self) -> EmbeddingService:
        """The service.

        Raises:
            ApiError: 503 while there is none, or it takes nothing new.
        """
        if self.phase is Phase.LOADING or self.service is None:
            raise ApiError(503, "loading", "the model is being loaded. Try again soon.", retry_after_s=5)
        if self.phase is Phase.DRAINING:
            raise ApiError(503, "draining", "the server is about to stop. Try another one.", retry_after_s=5)
        if not self.service.engine.alive:
            raise ApiError(503, "failed", "the computing thread has ended. Restart the server.")
        return self.service
