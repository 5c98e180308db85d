"""An embeddings server: OpenAI's API over one loaded LLM that answers any instruction."""

from promptembedder.server.middleware import ApiKeys
from promptembedder.server.app import create_app
from promptembedder.server.loading import load_service
from promptembedder.server.telemetry import log_to_stderr
from promptembedder.server.running import listening_socket, run_server
from promptembedder.server.service import Embedded, EmbeddingService, Wanted
from promptembedder.server.config import ComputeSettings, Limits, ServerSettings
from promptembedder.server.state import Phase, ServerState
from promptembedder.server.telemetry import Tracer, otlp_tracer

__all__ = [
    "ApiKeys",
    "ComputeSettings",
    "Embedded",
    "EmbeddingService",
    "Limits",
    "Phase",
    "ServerSettings",
    "ServerState",
    "Tracer",
    "Wanted",
    "create_app",
    "listening_socket",
    "load_service",
    "log_to_stderr",
    "otlp_tracer",
    "run_server",
]
