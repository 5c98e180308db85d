"""The application: routes, pages, errors, and the model that is loaded while it already listens."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from promptembedder.server import native_routes, openai_routes, pages
from promptembedder.server.middleware import ApiKeys, FrontDoor
from promptembedder.server.responses import add_error_answers
from promptembedder.server.service import EmbeddingService
from promptembedder.server.config import Limits
from promptembedder.server.state import Phase, ServerState
from promptembedder.server.telemetry import Tracer

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

_ABOUT = (
    "Embeddings under any instruction from one frozen LLM. `/v1/embeddings` takes what OpenAI's does, and "
    "`instruction`: what the vectors are for."
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
    """A server's application; it answers 503 until `load` has returned.

    Args:
        load: Called once, in a thread of its own.
        limits: Of these the size of a body is checked here, the others by the service.
        on_failure: Called with what `load` raised.
    """
    state = state or ServerState()

    async def loaded() -> None:
        try:
            service = await _in_a_passing_thread(lambda: load(state))
        except Exception as error:
            on_failure(error)
            raise
        state.service = service
        if state.phase is Phase.LOADING:
            state.phase = Phase.READY
        logger.info("ready")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(loaded())
        # whoever calls is told by on_failure; without this the loop would tell once more at its end
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        yield
        with contextlib.suppress(Exception):
            await loading
        if state.service is not None:
            await asyncio.to_thread(state.service.close)

    app = FastAPI(title="PromptEmbedder", description=_ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = state
    for router in (openai_routes.router, native_routes.router, pages.router):
        app.include_router(router)
    add_error_answers(app)
    app.openapi = lambda: _described(app, bool(keys))  # type: ignore[method-assign]
    app.add_middleware(
        FrontDoor,
        state=state,
        keys=keys or ApiKeys(),
        max_body_bytes=(limits or Limits()).max_body_bytes,
        routes=_paths(app),
        tracer=tracer or Tracer(),
    )
    return app


async def _in_a_passing_thread(work: Callable[[], EmbeddingService]) -> EmbeddingService:
    """What `work` returns, from a thread that ends with it.

    OpenMP keeps a team of threads for every thread that has computed. As soon as there are more of them than cores,
    they sleep instead of waiting awake, and each of a model's thousand small operations waits for one to wake up: with
    a loading thread that stays, the computing one was half as fast.
    """
    done: asyncio.Future[EmbeddingService] = asyncio.get_running_loop().create_future()

    def worked() -> None:
        try:
            result = work()
        except Exception as error:
            done.get_loop().call_soon_threadsafe(done.set_exception, error)
        else:
            done.get_loop().call_soon_threadsafe(done.set_result, result)

    thread = threading.Thread(target=worked, name="load", daemon=True)
    thread.start()
    try:
        return await done
    finally:
        await asyncio.to_thread(thread.join)


def _paths(app: FastAPI) -> Sequence[str]:
    return [*get_openapi(title="", version="", routes=app.routes)["paths"], "/", "/docs", "/openapi.json"]


def _described(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document, with the key that requests need."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        if needs_key:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            document["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema
