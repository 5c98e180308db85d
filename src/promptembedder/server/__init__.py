"""HTTP embeddings server: OpenAI's API over one frozen LLM, for any instruction."""

from promptembedder.server.app import bind_socket, create_app, run_server
from promptembedder.server.config import ComputeConfig, Limits, ReadingConfig, ServerConfig
from promptembedder.server.middleware import ApiKeys
from promptembedder.server.service import (
    EmbeddingService,
    EmbedRequest,
    EmbedResult,
    Phase,
    ServerState,
    load_service,
)
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
