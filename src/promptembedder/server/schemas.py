"""Bodies of requests and answers: OpenAI's embeddings, and the native form of text-embeddings-inference."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

__all__ = ["EmbedBody", "EmbeddingsBody", "EmbeddingsResponse", "ErrorResponse", "InfoResponse", "ModelsResponse"]

_NOT_EMPTY = Field(min_length=1)
TokenIds = Annotated[list[StrictInt], _NOT_EMPTY]
Text = Annotated[StrictStr, _NOT_EMPTY]
Inputs = Annotated[
    Text | Annotated[list[Text], _NOT_EMPTY] | TokenIds | Annotated[list[TokenIds], _NOT_EMPTY],
    Field(description="A text, texts, the token ids of a text, or of several; no special tokens among them."),
]
Instruction = Annotated[
    StrictStr | Annotated[list[StrictStr], _NOT_EMPTY] | None,
    Field(
        description=(
            "What the vectors are for. Of several, each input gets a vector under each, for little more than the cost "
            "of one: `data` then holds all inputs under the first, then all under the second, and so on."
        )
    ),
]


class _Strict(BaseModel):
    # a field that is misspelt would silently give other vectors
    model_config = ConfigDict(extra="forbid")


class EmbeddingsBody(_Strict):
    """OpenAI's embeddings request, with `instruction` and `truncate` beside it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"input": ["a text"], "instruction": "Given a question, retrieve the passage that answers it"}]
        },
    )

    input: Inputs
    model: StrictStr | None = Field(None, description="NAME, or NAME@INSTRUCTION_ID for a compiled instruction.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32.")
    dimensions: StrictInt | None = Field(None, description="The first so many numbers, at length 1 again.")
    user: StrictStr | None = Field(None, description="Ignored.")
    instruction: Instruction = None
    truncate: Literal["error", "left", "right"] | None = Field(
        None, description="What happens to a text that is too long; left and right name the end that is cut off."
    )


class EmbedBody(_Strict):
    """The native request of text-embeddings-inference, with `instruction` beside it."""

    inputs: Inputs
    normalize: Literal[True] = Field(True, description="Vectors always have length 1.")
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
    """OpenAI's answer; `truncated_inputs` counts texts that lost an end."""

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
    """OpenAI's list of models: the model itself, and once for each compiled instruction."""

    object: Literal["list"]
    data: list[_Model]


class InfoResponse(BaseModel):
    """What is served, in the words of text-embeddings-inference."""

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
    """Every answer that is no success."""

    error: _Error
