"""FastAPI application, whose model loads while it already listens, and the server process that runs and drains it."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from promptembedder.errors import ConfigError
from promptembedder.server.config import Limits
from promptembedder.server.middleware import ApiKeys, RequestGate
from promptembedder.server.routes import json_response, routers
from promptembedder.server.schemas import ApiError, error_body
from promptembedder.server.service import EmbeddingService, Phase, ServerState
from promptembedder.server.telemetry import Tracer

__all__ = ["bind_socket", "create_app", "run_server"]

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
    for router in routers:
        app.include_router(router)
    _add_exception_handlers(app)
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


def _add_exception_handlers(app: FastAPI) -> None:
    """Return every error in OpenAI's format, without repeating what the client sent."""

    def respond(request: Request, error: ApiError) -> Response:
        app.state.server.metrics.errors.labels(error.kind).inc()
        return json_response(error.body, status=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def handle_api_error(request: Request, error: ApiError) -> Response:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
        return respond(request, _to_api_error(error))

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> Response:
        kinds = {
            404: ("not_found", "there is no such page. See /docs."),
            405: ("method_not_allowed", "this path has another method. See /docs."),
        }
        kind, message = kinds.get(error.status_code, ("bad_request", "the request is malformed. See /docs."))
        app.state.server.metrics.errors.labels(kind).inc()
        body = error_body(error.status_code, kind, message)
        return json_response(body, status=error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def handle_unexpected_error(request: Request, error: Exception) -> Response:
        return respond(request, ApiError(500, "internal", "internal error. See the server's log for the cause."))


def _to_api_error(error: RequestValidationError) -> ApiError:
    """Describe the most relevant validation error of a body by its location and type, without the value."""
    # of the several forms that an input may have, the client meant the one that matched deepest
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", "the body is not valid JSON.")
    path = [str(part) for part in first["loc"][1:] if not _is_union_member(part)]
    param, location = path[0] if path else None, ".".join(path)
    if first["type"] == "extra_forbidden":
        return ApiError(400, "unknown_field", f"unknown field {location[:100]!r}. See /docs.", param=None)
    if not path:
        kind = "missing_field" if first["type"] == "missing" else "invalid_value"
        message = "the body is not a JSON object. Send one, with the header Content-Type: application/json."
        return ApiError(400, kind, message)
    if first["type"] == "missing":
        return ApiError(400, "missing_field", f"{location} is missing. Add it.", param=param)
    if param in ("input", "inputs"):
        place = param + "".join(f"[{part}]" for part in path[1:])
        if first["type"] in ("string_too_short", "too_short"):
            return ApiError(400, "invalid_input", f"{place} is empty. Send a text or leave it out.", param=param)
        message = f"{param} must be a text, token ids, or a list of either, none empty, without lone surrogates."
        return ApiError(400, "invalid_input", f"{place} is not valid: {message}", param=param)
    return ApiError(400, "invalid_value", f"{location}: {first['msg']}", param=param)


def _is_union_member(part: Any) -> bool:
    """Return True if this part of an error's location names a member of the union type, not a field of the body."""
    return isinstance(part, str) and ("[" in part or part in ("str", "constrained-str"))


class _DrainingServer(uvicorn.Server):
    """Uvicorn server that keeps listening while active requests finish. The application rejects new ones with 503.

    Uvicorn itself closes its sockets at the first signal: clients would get a refused connection instead of a 503.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, drain_s: float) -> None:
        super().__init__(config)
        self._state, self._drain_s = state, drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining at the first signal, exit immediately at the second."""
        if self._state.phase is Phase.DRAINING or self._loop is None:
            self.force_exit = self.should_exit = True
            return
        self._state.phase = Phase.DRAINING
        self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(sig).name)

    def abort(self) -> None:
        """Exit without draining, because there is no model."""
        self.should_exit = True

    def _start_draining(self, name: str) -> None:
        logger.info("%s: draining, %d active requests", name, self._state.in_flight)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._drain_s
        while self._state.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._state.in_flight:
            logger.warning("%d requests did not finish within %g s", self._state.in_flight, self._drain_s)
        self.should_exit = True


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind a listening socket to the address. Port 0 selects a free port.

    Raises:
        ConfigError: If the address is in use or does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(2048)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}. Try another --port or --host.") from error
    return bound


def run_server(app: FastAPI, *, bound: socket.socket, state: ServerState, drain_s: float) -> None:
    """Serve requests on a bound socket until SIGTERM or SIGINT, then give active requests `drain_s` seconds."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # requests left after draining are aborted
        timeout_keep_alive=30,
    )
    server = _DrainingServer(config, state, drain_s)
    state.stop = server.abort
    server.run(sockets=[bound])
