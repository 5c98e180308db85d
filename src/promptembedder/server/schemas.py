"""Bodies of requests, responses and errors, in the formats of OpenAI's API and of text-embeddings-inference."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

__all__ = [
    "ApiError",
    "EmbedBody",
    "EmbeddingsBody",
    "EmbeddingsResponse",
    "ErrorResponse",
    "InfoResponse",
    "ModelsResponse",
    "error_body",
]

_NOT_EMPTY = Field(min_length=1)
TokenIds = Annotated[list[StrictInt], _NOT_EMPTY]
Text = Annotated[StrictStr, _NOT_EMPTY]
Inputs = Annotated[
    Text | Annotated[list[Text], _NOT_EMPTY] | TokenIds | Annotated[list[TokenIds], _NOT_EMPTY],
    Field(description="A text, a list of texts, the token ids of a text, or a list of them. No special tokens."),
]
Instruction = Annotated[
    StrictStr | Annotated[list[StrictStr], _NOT_EMPTY] | None,
    Field(
        description=(
            "Task that the vectors are used for. With several instructions, each input gets one vector per instruction "
            "at little more than the cost of one: `data` contains all inputs under the first instruction, then all "
            "inputs under the second, and so on."
        )
    ),
]


class _Strict(BaseModel):
    # a misspelt field that is ignored would silently change the vectors
    model_config = ConfigDict(extra="forbid")


class EmbeddingsBody(_Strict):
    """OpenAI's embeddings request, extended by `instruction` and `truncate`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"input": ["a text"], "instruction": "Given a question, retrieve the passage that answers it"}]
        },
    )

    input: Inputs
    model: StrictStr | None = Field(None, description="Model name, or NAME@INSTRUCTION_ID for a compiled instruction.")
    encoding_format: Literal["float", "base64"] = Field("float", description="`base64` encodes little-endian float32.")
    dimensions: StrictInt | None = Field(
        None, description="Truncate vectors to this many dimensions and normalize them again."
    )
    user: StrictStr | None = Field(None, description="Ignored.")
    instruction: Instruction = None
    truncate: Literal["error", "left", "right"] | None = Field(
        None, description="Handling of a text that is too long: reject it, or cut off its left or right end."
    )


class EmbedBody(_Strict):
    """Request of text-embeddings-inference, extended by `instruction`."""

    inputs: Inputs
    normalize: Literal[True] = Field(True, description="Must be true: vectors always have length 1.")
    truncate: StrictBool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    prompt_name: StrictStr | None = Field(None, description="Id of a compiled instruction.")
    dimensions: StrictInt | None = None
    instruction: StrictStr | None = None


class _Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class _Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's embeddings response, extended by `truncated_inputs`, the number of truncated texts."""

    object: Literal["list"]
    data: list[_Embedding]
    model: str
    usage: _Usage
    truncated_inputs: int


class _Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    instruction: str | None


class ModelsResponse(BaseModel):
    """OpenAI's list of models: the model itself and one entry for each compiled instruction."""

    object: Literal["list"]
    data: list[_Model]


class InfoResponse(BaseModel):
    """Served model and its limits, in the format of text-embeddings-inference."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    instructions: Literal["free", "compiled"]
    dimensions: int


class _Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Error response of every route."""

    error: _Error


class ApiError(Exception):
    """An error response.

    Attributes:
        status: Status code of the HTTP response.
        kind: Machine-readable error code: OpenAI's `code` and the label of the error metric.
        param: Field of the request that caused the error, if any.
        retry_after_s: Seconds after which to retry. If None, the same request will fail again.
    """

    def __init__(
        self, status: int, kind: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """Create the error. `message` must not contain text that a client sent."""
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of the HTTP response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(math.ceil(self.retry_after_s), 1))}

    @property
    def body(self) -> dict[str, Any]:
        """JSON body of the HTTP response."""
        return error_body(self.status, self.kind, self.message, param=self.param)


def error_body(status: int, kind: str, message: str, *, param: str | None = None) -> dict[str, Any]:
    """Build the JSON body of an error response in OpenAI's format."""
    if status == 401:
        family = "authentication_error"
    elif status == 429:
        family = "rate_limit_error"
    else:
        family = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": family, "param": param, "code": kind}}
