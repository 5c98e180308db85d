"""FastAPI application: routes, pages, error handlers, and a model that loads while the server already listens."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from promptembedder.server import native_routes, openai_routes, pages
from promptembedder.server.config import Limits
from promptembedder.server.middleware import ApiKeys, RequestGate
from promptembedder.server.responses import add_exception_handlers
from promptembedder.server.service import EmbeddingService
from promptembedder.server.state import Phase, ServerState
from promptembedder.server.telemetry import Tracer

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

_DESCRIPTION = (
    "Embeddings under any instruction from one frozen LLM. `/v1/embeddings` accepts OpenAI's fields and "
    "`instruction`, the task that the vectors are used for."
)


def create_app(
    load: Callable[[ServerState], EmbeddingService],
    *,
    state: ServerState | None = None,
    keys: ApiKeys | None = None,
    limits: Limits | None = None,
    tracer: Tracer | None = None,
    on_failure: Callable[[Exception], None] = lambda _: None,
) -> FastAPI:
    """Build the server's application, which responds with 503 until `load` has returned.

    Args:
        load: Loads the model. Called once, in a separate thread.
        limits: Limits of a request. Only `max_body_bytes` is checked here, the service checks the others.
        on_failure: Called with the exception that `load` raised.
    """
    state = state or ServerState()

    async def load_model() -> None:
        try:
            service = await _run_in_short_lived_thread(lambda: load(state))
        except Exception as error:
            on_failure(error)
            raise
        state.service = service
        if state.phase is Phase.LOADING:
            state.phase = Phase.READY
        logger.info("ready")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load_model())
        # on_failure has reported the exception: retrieve it, so that the event loop does not log it again
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        yield
        with contextlib.suppress(Exception):
            await loading
        if state.service is not None:
            await asyncio.to_thread(state.service.close)

    app = FastAPI(title="PromptEmbedder", description=_DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = state
    for router in (openai_routes.router, native_routes.router, pages.router):
        app.include_router(router)
    add_exception_handlers(app)
    app.openapi = lambda: _openapi_document(app, bool(keys))  # type: ignore[method-assign]
    app.add_middleware(
        RequestGate,
        state=state,
        keys=keys or ApiKeys(),
        max_body_bytes=(limits or Limits()).max_body_bytes,
        routes=_route_paths(app),
        tracer=tracer or Tracer(),
    )
    return app


async def _run_in_short_lived_thread(work: Callable[[], EmbeddingService]) -> EmbeddingService:
    """Run `work` in a thread that ends with it, and return its result.

    OpenMP keeps a thread pool for every thread that has computed. When the pools have more threads than there are
    cores, idle threads sleep instead of spinning, and each small operation of a forward pass waits for a wake-up. With
    a loading thread that stays alive, the computing thread was half as fast.
    """
    done: asyncio.Future[EmbeddingService] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            done.get_loop().call_soon_threadsafe(done.set_exception, error)
        else:
            done.get_loop().call_soon_threadsafe(done.set_result, result)

    thread = threading.Thread(target=run, name="load", daemon=True)
    thread.start()
    try:
        return await done
    finally:
        await asyncio.to_thread(thread.join)


def _route_paths(app: FastAPI) -> Sequence[str]:
    return [*get_openapi(title="", version="", routes=app.routes)["paths"], "/", "/docs", "/openapi.json"]


def _openapi_document(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    """Build the OpenAPI document, with the security scheme if requests need an API key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        if needs_key:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            document["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema
