"""Routes of OpenAI's API: `/v1/embeddings` and `/v1/models`."""

import time

from fastapi import APIRouter, Request, Response

from promptembedder.server.errors import ApiError
from promptembedder.server.responses import ERRORS, as_base64, as_list, compute_embeddings, get_service, json_response
from promptembedder.server.schemas import EmbeddingsBody, EmbeddingsResponse, ModelsResponse
from promptembedder.server.service import EmbeddingService, EmbedRequest

__all__ = ["router"]

router = APIRouter(tags=["OpenAI"])
_START_TIME = int(time.time())


@router.post("/v1/embeddings", response_model=EmbeddingsResponse, responses=ERRORS)
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


@router.get("/v1/models", response_model=ModelsResponse, responses={status: ERRORS[status] for status in (401, 503)})
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
