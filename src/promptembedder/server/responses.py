"""Response handling shared by all routes: cancellation on disconnect, JSON encoding and error handlers."""

import asyncio
import base64
import contextlib
from collections.abc import Coroutine
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from promptembedder.server.errors import ApiError, error_body
from promptembedder.server.schemas import ErrorResponse
from promptembedder.server.service import EmbeddingService, EmbedRequest, EmbedResult
from promptembedder.server.state import ServerState
from promptembedder.types import Float

__all__ = [
    "ERRORS",
    "add_exception_handlers",
    "as_base64",
    "as_list",
    "compute_embeddings",
    "get_service",
    "json_response",
]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in (
        (400, "The request is malformed or has an invalid value."),
        (401, "No valid API key."),
        (404, "No such model or instruction."),
        (408, "The body arrived too slowly."),
        (413, "The body, or the number of inputs, is too large."),
        (422, "An input or instruction is too long."),
        (429, "The queue is full. Retry after the number of seconds in `Retry-After`."),
        (500, "The vectors could not be computed."),
        (503, "The server is loading or shutting down."),
        (504, "The vectors were not computed before the deadline."),
    )
}


def get_state(request: Request) -> ServerState:
    """Return the state of the server."""
    state: ServerState = request.app.state.server
    return state


def get_service(request: Request) -> EmbeddingService:
    """Return the service of the loaded model.

    Raises:
        ApiError: 503 if no model is ready.
    """
    return get_state(request).ready()


async def compute_embeddings(request: Request, service: EmbeddingService, embed_request: EmbedRequest) -> EmbedResult:
    """Compute the vectors of a request. If the client disconnects first, remove its texts from the queue."""
    result = await _cancel_on_disconnect(request, service.embed(embed_request))
    request.state.log = {
        "inputs": len(embed_request.inputs),
        "instructions": len(result.vectors),
        "tokens": result.tokens,
        "truncated": result.truncated,
    }
    return result


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, EmbedResult]) -> EmbedResult:
    computation = asyncio.ensure_future(work)
    # the body has been read: the next message is the disconnect
    disconnect = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({computation, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not computation.done():
            raise ApiError(499, "client_gone", "the client disconnected.")
        return computation.result()
    finally:
        for task in (computation, disconnect):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await computation


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Build a JSON response. NumPy arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def as_list(value: Any) -> list[Any]:
    """Convert any of the input forms of a request to a list of texts or of lists of token ids."""
    single = isinstance(value, str) or isinstance(value[0], int)
    return [value] if single else value


def as_base64(vector: Float[np.ndarray, " dim"]) -> str:
    """Encode the vector as base64 of little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def add_exception_handlers(app: FastAPI) -> None:
    """Return every error in OpenAI's format, without repeating what the client sent."""

    def respond(request: Request, error: ApiError) -> Response:
        get_state(request).metrics.errors.labels(error.kind).inc()
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
        get_state(request).metrics.errors.labels(kind).inc()
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
