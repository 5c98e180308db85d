"""What all routes do: wait for vectors as long as the client does, write answers and errors."""

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

from promptembedder.server.schemas import ErrorResponse
from promptembedder.server.errors import ApiError, error_body
from promptembedder.server.service import Embedded, EmbeddingService, Wanted
from promptembedder.server.state import ServerState
from promptembedder.types import Float

__all__ = ["ERRORS", "add_error_answers", "as_base64", "as_list", "embedded", "json_answer", "service_of"]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words}
    for status, words in (
        (400, "The request cannot be understood, or names what is not there."),
        (401, "No valid API key."),
        (404, "No such model or instruction."),
        (408, "The body came too slowly."),
        (413, "The body, or the number of inputs, is too large."),
        (422, "An input or instruction is too long."),
        (429, "Too much waits already; `Retry-After` says when to come again."),
        (500, "The vectors could not be computed."),
        (503, "The server is loading or about to stop."),
        (504, "The vectors took too long."),
    )
}


def state_of(request: Request) -> ServerState:
    """Where the server stands."""
    state: ServerState = request.app.state.server
    return state


def service_of(request: Request) -> EmbeddingService:
    """The loaded model.

    Raises:
        ApiError: 503 while there is none.
    """
    return state_of(request).ready()


async def embedded(request: Request, service: EmbeddingService, wanted: Wanted) -> Embedded:
    """Vectors, unless the client goes away first: then what waits for it is dropped."""
    result = await _unless_gone(request, service.embed(wanted))
    request.state.log = {
        "inputs": len(wanted.inputs),
        "instructions": len(result.vectors),
        "tokens": result.tokens,
        "truncated": result.truncated,
    }
    return result


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Embedded]) -> Embedded:
    working = asyncio.ensure_future(work)
    # the body has been read: the next message is that the client went away
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "client_gone", "the client went away.")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await working


def json_answer(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response; numpy arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def as_list(value: Any) -> list[Any]:
    """A list of texts, or of lists of token ids, from any of a request's forms."""
    single = isinstance(value, str) or isinstance(value[0], int)
    return [value] if single else value


def as_base64(vector: Float[np.ndarray, " dim"]) -> str:
    """The vector's little-endian float32 numbers in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def add_error_answers(app: FastAPI) -> None:
    """Give every error OpenAI's shape; none repeats what a client sent."""

    def answer(request: Request, error: ApiError) -> Response:
        state_of(request).metrics.errors.labels(error.kind).inc()
        return json_answer(error.body, status=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return answer(request, _malformed(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        kinds = {404: ("not_found", "there is no such page."), 405: ("method_not_allowed", "use another method here.")}
        kind, message = kinds.get(error.status_code, ("bad_request", "the request cannot be understood."))
        state_of(request).metrics.errors.labels(kind).inc()
        body = error_body(error.status_code, kind, message)
        return json_answer(body, status=error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return answer(request, ApiError(500, "internal", "an error of the server; its log says which."))


def _malformed(error: RequestValidationError) -> ApiError:
    """The first of what is wrong with a body: where and what, never the value."""
    first = min(error.errors(), key=lambda one: _effort(one["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", "the body is not valid JSON.")
    place = [str(part) for part in first["loc"][1:] if not _is_form(part)]
    param = place[0] if place else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, "unknown_field", f"{'.'.join(place)[:100]!r} is not known here.", param=None)
    if first["type"] == "missing":
        return ApiError(400, "missing_field", f"{'.'.join(place) or 'the body'} is missing.", param=param)
    if param in ("input", "inputs"):
        message = f"{param} must be a text, texts, token ids, or lists of them; nothing empty, no lone surrogates."
        return ApiError(400, "invalid_input", f"{message} See {'.'.join(place)}.", param=param)
    return ApiError(400, "invalid_value", f"{'.'.join(place) or 'the body'}: {first['msg']}", param=param)


def _effort(place: tuple[Any, ...]) -> int:
    """Of several forms that an input may have, the one that went deepest is what the client meant: it comes first."""
    return -len(place)


def _is_form(part: Any) -> bool:
    """Whether this part of an error's place names a form of the union and nothing of the body."""
    return isinstance(part, str) and ("[" in part or part in ("str", "constrained-str"))
