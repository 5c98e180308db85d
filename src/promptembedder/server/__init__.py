"""HTTP embeddings server: OpenAI's API over one frozen LLM, for any instruction."""

from promptembedder.server.app import create_app
from promptembedder.server.config import ComputeConfig, Limits, ReadingConfig, ServerConfig
from promptembedder.server.loading import load_service
from promptembedder.server.middleware import ApiKeys
from promptembedder.server.running import bind_socket, run_server
from promptembedder.server.service import EmbeddingService, EmbedRequest, EmbedResult
from promptembedder.server.state import Phase, ServerState
from promptembedder.server.telemetry import Tracer, log_to_stderr, otlp_tracer

__all__ = [
    "ApiKeys",
    "ComputeConfig",
    "EmbedRequest",
    "EmbedResult",
    "EmbeddingService",
    "Limits",
    "Phase",
    "ReadingConfig",
    "ServerConfig",
    "ServerState",
    "Tracer",
    "bind_socket",
    "create_app",
    "load_service",
    "log_to_stderr",
    "otlp_tracer",
    "run_server",
]
