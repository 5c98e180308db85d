"""`/embed`, `/info`, `/health`, `/metrics`: what clients of text-embeddings-inference and operators ask."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from promptembedder.server.responses import ERRORS, as_list, embedded, json_answer, service_of
from promptembedder.server.schemas import EmbedBody, InfoResponse
from promptembedder.server.service import Wanted
from promptembedder.storage import versions

__all__ = ["router"]

router = APIRouter(tags=["native"])


@router.post("/embed", response_model=list[list[float]], responses=ERRORS)
async def embed(body: EmbedBody, request: Request) -> Response:
    """A list of numbers for each input; the header `X-Truncated-Inputs` counts texts that lost an end."""
    service = service_of(request)
    if body.truncate is None:
        truncate = None
    else:
        truncate = body.truncation_direction.lower() if body.truncate else "error"
    result = await embedded(
        request,
        service,
        Wanted(
            inputs=as_list(body.inputs),
            instructions=[] if body.instruction is None else [body.instruction],
            named=body.prompt_name,
            dimensions=body.dimensions,
            truncate=truncate,
            tenant=request.state.tenant,
        ),
    )
    return json_answer(list(result.vectors[0]), headers={"X-Truncated-Inputs": str(result.truncated)})


@router.get("/info", response_model=InfoResponse, responses={status: ERRORS[status] for status in (401, 503)})
async def info(request: Request) -> Response:
    """What is served, and its limits."""
    service = service_of(request)
    settings, reader = service.settings, service.model.encoder.reader
    content: dict[str, Any] = {
        "model_id": settings.model_name,
        "model_sha": reader.ref.fingerprint,
        "model_dtype": reader.ref.dtype,
        "model_type": {"embedding": {"pooling": service.model.encoder.settings.pooling}},
        "max_concurrent_requests": settings.limits.max_waiting,
        "max_input_length": service.max_input_tokens,
        "max_batch_tokens": service.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.limits.max_inputs,
        "auto_truncate": settings.truncate != "error",
        "tokenization_workers": 1,
        "version": versions()["promptembedder"],
        "instructions": settings.instructions,
        "dimensions": service.dim,
    }
    return json_answer(content)


@router.get("/health", responses={503: ERRORS[503]})
async def health(request: Request) -> Response:
    """200 once the model answers, 503 before and while the server stops; needs no key."""
    service_of(request)
    return json_answer({"status": "ok"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: ERRORS[401]})
async def metrics(request: Request) -> Response:
    """Counters and histograms for Prometheus."""
    return Response(request.app.state.server.metrics.exposed(), media_type=CONTENT_TYPE_LATEST)
