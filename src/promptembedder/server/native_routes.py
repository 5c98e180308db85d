"""Routes of text-embeddings-inference (`/embed`, `/info`) and of operations (`/health`, `/metrics`)."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from promptembedder.server.responses import ERRORS, as_list, compute_embeddings, get_service, json_response
from promptembedder.server.schemas import EmbedBody, InfoResponse
from promptembedder.server.service import EmbedRequest
from promptembedder.storage import versions

__all__ = ["router"]

router = APIRouter(tags=["native"])


@router.post("/embed", response_model=list[list[float]], responses=ERRORS)
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


@router.get("/info", response_model=InfoResponse, responses={status: ERRORS[status] for status in (401, 503)})
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


@router.get("/health", responses={503: ERRORS[503]})
async def health(request: Request) -> Response:
    """Return 200 while the model is ready, and 503 during loading and shutdown. No API key is needed."""
    get_service(request)
    return json_response({"status": "ok"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: ERRORS[401]})
async def metrics(request: Request) -> Response:
    """Return counters and histograms in the text format of Prometheus."""
    return Response(request.app.state.server.metrics.render(), media_type=CONTENT_TYPE_LATEST)
