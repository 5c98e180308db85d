"""Routes: OpenAI's API, that of text-embeddings-inference, health and metrics, and the HTML pages."""

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import Coroutine
from importlib import resources
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST

from promptembedder.server.schemas import (
    ApiError,
    EmbedBody,
    EmbeddingsBody,
    EmbeddingsResponse,
    ErrorResponse,
    InfoResponse,
    ModelsResponse,
)
from promptembedder.server.service import EmbeddingService, EmbedRequest, EmbedResult, ServerState
from promptembedder.storage import versions
from promptembedder.types import Float

__all__ = ["json_response", "routers"]

openai, native, pages = APIRouter(tags=["OpenAI"]), APIRouter(tags=["native"]), APIRouter(include_in_schema=False)
routers = (openai, native, pages)
_START_TIME = int(time.time())

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


@openai.post("/v1/embeddings", response_model=EmbeddingsResponse, responses=ERRORS)
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """Compute a vector for each input under each instruction."""
    service = get_service(request)
    result = await compute_embeddings(
        request,
        service,
        EmbedRequest(
            inputs=as_list(body.input),
            instructions=[] if body.instruction is None else as_list(body.instruction),
            instruction_id=_instruction_id(body.model, service),
            dimensions=body.dimensions,
            truncate=body.truncate,
            tenant=request.state.tenant,
        ),
    )
    flat = result.vectors.reshape(-1, result.vectors.shape[-1])
    numbers = map(as_base64, flat) if body.encoding_format == "base64" else flat
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(numbers)]
    usage = {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": body.model or service.config.model_name,
            "usage": usage,
            "truncated_inputs": result.truncated,
        }
    )


@openai.get("/v1/models", response_model=ModelsResponse, responses={status: ERRORS[status] for status in (401, 503)})
async def list_models(request: Request) -> Response:
    """List the model and one further entry for each of its compiled instructions."""
    service = get_service(request)
    name = service.config.model_name
    models = [(name, None), *((f"{name}@{short_id}", text) for short_id, text in service.instructions.items())]
    data = [
        {"id": model_id, "object": "model", "created": _START_TIME, "owned_by": "promptembedder", "instruction": text}
        for model_id, text in models
    ]
    return json_response({"object": "list", "data": data})


def _instruction_id(model: str | None, service: EmbeddingService) -> str | None:
    """Parse the instruction id after the @ of a model name. Return None if there is none."""
    if model is None:
        return None
    name, at, instruction = model.partition("@")
    if name != service.config.model_name:
        raise ApiError(
            404,
            "model_not_found",
            f"no such model is served. Send {service.config.model_name!r}, or one that GET /v1/models lists.",
            param="model",
        )
    return instruction if at else None


@native.post("/embed", response_model=list[list[float]], responses=ERRORS)
async def embed(body: EmbedBody, request: Request) -> Response:
    """Compute one vector per input. The header `X-Truncated-Inputs` gives the number of truncated texts."""
    service = get_service(request)
    if body.truncate is None:
        truncate = None
    else:
        truncate = body.truncation_direction.lower() if body.truncate else "error"
    result = await compute_embeddings(
        request,
        service,
        EmbedRequest(
            inputs=as_list(body.inputs),
            instructions=[] if body.instruction is None else [body.instruction],
            instruction_id=body.prompt_name,
            dimensions=body.dimensions,
            truncate=truncate,
            tenant=request.state.tenant,
        ),
    )
    return json_response(list(result.vectors[0]), headers={"X-Truncated-Inputs": str(result.truncated)})


@native.get("/info", response_model=InfoResponse, responses={status: ERRORS[status] for status in (401, 503)})
async def info(request: Request) -> Response:
    """Return the served model and its limits."""
    service = get_service(request)
    config, reader = service.config, service.model.encoder.reader
    content: dict[str, Any] = {
        "model_id": config.model_name,
        "model_sha": reader.identity.fingerprint,
        "model_dtype": reader.identity.dtype,
        "model_type": {"embedding": {"pooling": service.model.encoder.config.pooling}},
        "max_concurrent_requests": config.limits.max_waiting,
        "max_input_length": service.max_input_tokens,
        "max_batch_tokens": service.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": config.limits.max_inputs,
        "auto_truncate": config.truncate != "error",
        "tokenization_workers": 1,
        "version": versions()["promptembedder"],
        "instructions": config.instructions,
        "dimensions": config.dimensions or service.dim,
    }
    return json_response(content)


@native.get("/health", responses={503: ERRORS[503]})
async def health(request: Request) -> Response:
    """Return 200 while the model is ready, and 503 during loading and shutdown. No API key is needed."""
    get_service(request)
    return json_response({"status": "ok"})


@native.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: ERRORS[401]})
async def metrics(request: Request) -> Response:
    """Return counters and histograms in the text format of Prometheus."""
    return Response(request.app.state.server.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@pages.get("/")
async def home() -> HTMLResponse:
    """Return the demo page."""
    return _page("home.html")


@pages.get("/docs")
async def docs() -> HTMLResponse:
    """Return the page that renders the OpenAPI document. It loads nothing from other servers."""
    return _page("docs.html")


def _page(name: str) -> HTMLResponse:
    """Build a page with a Content-Security-Policy: only scripts with the nonce run, so pasted text never executes."""
    nonce = secrets.token_urlsafe(16)
    content = resources.files("promptembedder.server").joinpath(name).read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(content.replace("{{nonce}}", nonce), headers=headers)


def get_service(request: Request) -> EmbeddingService:
    """Return the service of the loaded model.

    Raises:
        ApiError: 503 if no model is ready.
    """
    state: ServerState = request.app.state.server
    return state.ready()


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
