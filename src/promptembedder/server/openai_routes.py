"""`/v1/embeddings` and `/v1/models`, as clients of OpenAI's API expect them."""

import time

from fastapi import APIRouter, Request, Response

from promptembedder.server.responses import ERRORS, as_base64, as_list, embedded, json_answer, service_of
from promptembedder.server.schemas import EmbeddingsBody, EmbeddingsResponse, ModelsResponse
from promptembedder.server.errors import ApiError
from promptembedder.server.service import EmbeddingService, Wanted

__all__ = ["router"]

router = APIRouter(tags=["OpenAI"])
_STARTED = int(time.time())


@router.post("/v1/embeddings", response_model=EmbeddingsResponse, responses=ERRORS)
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """A vector for each input, under an instruction."""
    service = service_of(request)
    result = await embedded(
        request,
        service,
        Wanted(
            inputs=as_list(body.input),
            instructions=[] if body.instruction is None else as_list(body.instruction),
            named=_instruction_id(body.model, service),
            dimensions=body.dimensions,
            truncate=body.truncate,
            tenant=request.state.tenant,
        ),
    )
    flat = result.vectors.reshape(-1, result.vectors.shape[-1])
    numbers = map(as_base64, flat) if body.encoding_format == "base64" else flat
    data = [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(numbers)]
    usage = {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
    return json_answer(
        {
            "object": "list",
            "data": data,
            "model": body.model or service.settings.model_name,
            "usage": usage,
            "truncated_inputs": result.truncated,
        }
    )


@router.get("/v1/models", response_model=ModelsResponse, responses={status: ERRORS[status] for status in (401, 503)})
async def models(request: Request) -> Response:
    """The model, and once more for each of its compiled instructions."""
    service = service_of(request)
    name = service.settings.model_name
    listed = [(name, None), *((f"{name}@{one}", text) for one, text in service.names.items())]
    data = [
        {"id": one, "object": "model", "created": _STARTED, "owned_by": "promptembedder", "instruction": text}
        for one, text in listed
    ]
    return json_answer({"object": "list", "data": data})


def _instruction_id(model: str | None, service: EmbeddingService) -> str | None:
    """What stands after the @ in a model's name."""
    if model is None:
        return None
    name, at, instruction = model.partition("@")
    if name != service.settings.model_name:
        raise ApiError(404, "model_not_found", "no such model is served; /v1/models lists what is.", param="model")
    return instruction if at else None
