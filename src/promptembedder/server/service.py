"""Served model: loading, phases, and one request from validation to embedding."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from promptembedder.backbone import TokenIds
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError
from promptembedder.model import PromptEmbedder, check_self_test
from promptembedder.server.batch_embedder import BatchEmbedder, InstructionKey
from promptembedder.server.config import ReadingConfig, ServerConfig
from promptembedder.server.engine import EmbeddingEngine
from promptembedder.server.schemas import ApiError
from promptembedder.server.telemetry import ServerMetrics
from promptembedder.types import Float

__all__ = ["EmbedRequest", "EmbedResult", "EmbeddingService", "Phase", "ServerState", "load_service"]

Inputs = Sequence[str | Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """One embedding request, independent of the API format it arrived in.

    Attributes:
        inputs: Texts, or their token ids without the model's prefix.
        instructions: Instructions as the client sent them. If empty, the model's default instruction.
        instruction_id: Id of a compiled instruction, as an alternative to `instructions`.
        dimensions: Number of dimensions to truncate the vectors to. If None, all dimensions.
        truncate: Handling of long texts: `error`, `left` or `right`. If None, the server's default.
        tenant: Name of the API key's owner.
    """

    inputs: Inputs
    instructions: Sequence[str] = ()
    instruction_id: str | None = None
    dimensions: int | None = None
    truncate: str | None = None
    tenant: str = ""


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """Vectors of a request, and its usage.

    Attributes:
        vectors: Vectors of length 1.
        tokens: Number of tokens that were processed, after truncation.
        truncated: Number of truncated texts.
    """

    vectors: Float[np.ndarray, "instructions texts dim"]
    tokens: int
    truncated: int


class EmbeddingService:
    """Embeds the texts of requests with one loaded model."""

    def __init__(self, model: PromptEmbedder, config: ServerConfig, metrics: ServerMetrics) -> None:
        """Start serving `model`, which must not be used outside the service from now on.

        Raises:
            ConfigError: If the KV cache of a text depends on the instruction, if free instructions are configured
                without a prompter, or compiled ones without any compiled instruction.
        """
        encoder = model.encoder.eval()
        if not encoder.reads_text_once:
            raise ConfigError(
                "serving needs a model with placement 'suffix' and a prompter.template without {text}. "
                "Train such a model."
            )
        if config.instructions == "free" and encoder.prompter is None:
            raise ConfigError(
                "free instructions need the prompter. Load the model with it, or serve compiled instructions."
            )
        if config.dimensions is not None and not 1 <= config.dimensions <= encoder.reader.dim:
            raise ConfigError(f"dimensions must be between 1 and {encoder.reader.dim}, got {config.dimensions}.")
        self.model, self.config, self.metrics = model, config, metrics
        self._encoder, self.dim = encoder, encoder.reader.dim
        self.instructions = instruction_ids(encoder.store.compiled, model.prompts)
        if config.instructions == "compiled" and not self.instructions:
            raise ConfigError(
                "the model has no compiled instruction to serve. "
                "Compile some: promptembedder compile MODEL --instruction TEXT; or serve --instructions free."
            )
        on_gpu = encoder.device.type != "cpu"
        self.max_batch_tokens = config.compute.max_batch_tokens or (16384 if on_gpu else 2048)
        batch_embedder = BatchEmbedder(
            encoder,
            max_batch_tokens=self.max_batch_tokens,
            max_cached_instructions=config.compute.max_cached_instructions,
        )
        self.engine = EmbeddingEngine(
            batch_embedder.embed,
            dim=self.dim,
            max_batch_tokens=self.max_batch_tokens,
            max_waiting=config.limits.max_waiting,
            observe=metrics.record_batch,
        )
        metrics.watch_waiting(lambda: self.engine.waiting)

    @property
    def max_input_tokens(self) -> int:
        """Maximum number of tokens of a text, the model's prefix included."""
        return self._encoder.max_seq_length

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Compute the vectors of all inputs under each instruction.

        Raises:
            ApiError: If the request is invalid or cannot be processed. The message says how to fix it.
        """
        self._check(request)
        keys = [InstructionKey(request.tenant, text) for text in self._instructions_of(request)]
        if len(keys) * len(request.inputs) > self.config.limits.max_waiting:
            raise ApiError(
                413,
                "too_many_vectors",
                f"{len(request.inputs)} inputs under {len(keys)} instructions exceed the maximum of "
                f"{self.config.limits.max_waiting} vectors per request. Send fewer inputs per request.",
                param="input",
            )
        start = time.monotonic()
        # in another thread: tokenizing a long text takes milliseconds and would block the event loop
        tokenized = await asyncio.to_thread(self._token_ids, request.inputs)
        self.metrics.tokenise_seconds.observe(time.monotonic() - start)
        rows, truncated = self._truncate(tokenized, request.truncate or self.config.truncate)
        vectors = await self.engine.embed(rows, keys, deadline_s=self.config.limits.deadline_s)
        tokens = sum(map(len, rows))
        self.metrics.inputs.inc(len(rows))
        self.metrics.tokens.inc(tokens)
        self.metrics.truncated.inc(truncated)
        return EmbedResult(
            vectors=_truncate_dimensions(vectors, request.dimensions or self.config.dimensions),
            tokens=tokens,
            truncated=truncated,
        )

    def warm_up(self) -> None:
        """Run the configured warm-up. Must not be called from a running event loop."""
        config = self.config.compute
        if config.warmup == "none":
            return
        tokenizer = self._encoder.reader.tokenizer
        ids, length = tokenizer.text_ids(["warm "])[0], self.max_input_tokens
        # texts of different lengths: identical texts would be deduplicated
        longest = (*tokenizer.prefix, *(ids * length))[:length]
        count = max(self.max_batch_tokens // length, 1) if config.warmup == "full" else 1
        rows = [longest[: length - cut] if count > 1 else longest[:16] for cut in range(min(count, length))]
        instruction = next(iter(self.instructions.values()), self._encoder.instruction_of(None))
        asyncio.run(self.engine.embed(rows, [InstructionKey("", instruction)], deadline_s=3600))

    def close(self) -> None:
        """Compute the queued texts and stop the computing thread."""
        self.engine.stop()

    def _check(self, request: EmbedRequest) -> None:
        limits = self.config.limits
        count = len(request.inputs)
        if not count:
            raise ApiError(400, "empty_input", "input is an empty list. Send at least one text.", param="input")
        if count > limits.max_inputs:
            message = f"{count} inputs exceed the maximum of {limits.max_inputs}. Send fewer inputs per request."
            raise ApiError(413, "too_many_inputs", message, param="input")
        for index, content in enumerate(request.inputs):
            if not len(content):
                raise ApiError(400, "empty_input", f"input {index} is empty. Leave it out.", param="input")
            if isinstance(content, str) and len(content) > limits.max_input_chars:
                message = f"input {index} has {len(content)} characters, maximum {limits.max_input_chars}. Shorten it."
                raise ApiError(422, "input_too_long", message, param="input")
        if len(request.instructions) > limits.max_instructions:
            message = (
                f"{len(request.instructions)} instructions exceed the maximum of {limits.max_instructions}. Send fewer."
            )
            raise ApiError(422, "too_many_instructions", message, param="instruction")
        longest = max(map(len, request.instructions), default=0)
        if longest > limits.max_instruction_chars:
            message = f"an instruction has {longest} characters, maximum {limits.max_instruction_chars}. Shorten it."
            raise ApiError(422, "instruction_too_long", message, param="instruction")
        if request.dimensions is not None and not 1 <= request.dimensions <= self.dim:
            message = f"dimensions must be between 1 and {self.dim}, got {request.dimensions}."
            raise ApiError(400, "bad_dimensions", message, param="dimensions")

    def _instructions_of(self, request: EmbedRequest) -> list[str]:
        if request.instruction_id is not None:
            if request.instructions:
                message = (
                    "the model name has an instruction id already. Leave out either instruction or the part after @."
                )
                raise ApiError(400, "two_instructions", message, param="instruction")
            if request.instruction_id not in self.instructions:
                raise ApiError(
                    404,
                    "instruction_not_found",
                    "no compiled instruction has this id. GET /v1/models lists the ids.",
                    param="model",
                )
            return [self.instructions[request.instruction_id]]
        instructions = [self._encoder.instruction_of(text) for text in request.instructions or [""]]
        if self.config.instructions == "compiled" and not set(instructions) <= set(self.instructions.values()):
            reason = (
                "this instruction is" if request.instructions else "no instruction was given, and the default one is"
            )
            raise ApiError(
                400,
                "instruction_not_compiled",
                f"{reason} not compiled into the model. GET /v1/models lists the compiled instructions.",
                param="instruction",
            )
        return instructions

    def _token_ids(self, inputs: Inputs) -> list[list[int]]:
        texts = [content for content in inputs if isinstance(content, str)]
        tokenized = iter(self._encoder.reader.tokenizer.text_ids([clean_text(text) for text in texts]))
        return [
            next(tokenized) if isinstance(content, str) else self._check_token_ids(index, content)
            for index, content in enumerate(inputs)
        ]

    def _check_token_ids(self, index: int, ids: Sequence[int]) -> list[int]:
        """Validate token ids that a client sent."""
        vocab = len(self._encoder.reader.input_embeddings)
        special = set(self._encoder.tokenizer.all_special_ids)
        for one in ids:
            if not 0 <= one < vocab:
                message = f"input {index} has the token id {one}. Token ids must be between 0 and {vocab - 1}."
                raise ApiError(400, "bad_token_id", message, param="input")
            if one in special:
                message = f"input {index} has the special token id {one}. Send only the tokens of the text."
                raise ApiError(400, "bad_token_id", message, param="input")
        return list(ids)

    def _truncate(self, tokenized: Sequence[list[int]], truncate: str) -> tuple[list[TokenIds], int]:
        prefix = self._encoder.reader.tokenizer.prefix
        room = self.max_input_tokens - len(prefix)
        long = [index for index, ids in enumerate(tokenized) if len(ids) > room]
        if long and truncate == "error":
            message = (
                f"input {long[0]} has {len(tokenized[long[0]])} tokens, maximum {room}. "
                "Shorten it, or set truncate to left or right."
            )
            raise ApiError(422, "input_too_long", message, param="input")
        cut = [ids[-room:] if truncate == "left" else ids[:room] for ids in tokenized]
        return [(*prefix, *ids) for ids in cut], len(long)


def instruction_ids(compiled: Mapping[str, object], prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Map ids to compiled instructions. An id is the name of the model's prompt with this text, or 8 hash digits."""
    names = {text.strip(): name for name, text in prompts.items() if text}
    return {names.get(text) or hashlib.sha256(text.encode()).hexdigest()[:8]: text for text in compiled}


def _truncate_dimensions(
    vectors: Float[np.ndarray, "instructions texts dim"], dimensions: int | None
) -> Float[np.ndarray, "instructions texts shorter"]:
    """Keep the first `dimensions` values of each vector and normalize it again."""
    if dimensions is None or dimensions == vectors.shape[-1]:
        return vectors
    short = vectors[..., :dimensions]
    norm = np.linalg.norm(short, axis=-1, keepdims=True)
    return short / np.maximum(norm, np.finfo(np.float32).tiny)


def load_service(
    folder: Path,
    config: ServerConfig,
    metrics: ServerMetrics,
    *,
    reading: ReadingConfig | None = None,
) -> EmbeddingService:
    """Load the model in `folder`, run its self-test and warm it up.

    The prompter is loaded only for free instructions.

    Args:
        reading: How the reader is loaded and run. If None, as in training.

    Raises:
        ModelFormatError: If the model folder is incomplete, or has no alignment for this reader.
        BackboneError: If a backbone is missing.
        ConfigError: If the model cannot be served with this configuration.
        WeightsError: If the self-test gives other vectors than when the model was saved.
    """
    reading = reading or ReadingConfig()
    model = PromptEmbedder.from_pretrained(
        folder,
        reader=reading.reader,
        quantization=reading.quantization,
        with_prompter=config.instructions == "free",
        device=reading.device,
    )
    check_self_test(model, folder)
    if reading.early_exit_fraction is not None:
        model.early_exit_fraction = reading.early_exit_fraction
    if reading.max_length is not None:
        model.max_seq_length = reading.max_length
    service = EmbeddingService(model, config, metrics)
    metrics.max_batch_tokens = service.max_batch_tokens
    service.warm_up()
    return service


class Phase(StrEnum):
    """Phase of a server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class ServerState:
    """State shared by the parts of one server.

    Attributes:
        metrics: Metrics of the server.
        phase: Current phase.
        service: Service of the loaded model. None while the model loads.
        in_flight: Number of active requests.
        stop: Stops the server. Set by `run_server`.
    """

    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    phase: Phase = Phase.LOADING
    service: EmbeddingService | None = None
    in_flight: int = 0
    stop: Callable[[], None] = lambda: None

    def ready(self) -> EmbeddingService:
        """Return the service.

        Raises:
            ApiError: 503 if the model is loading, the server is draining, or the computing thread has died.
        """
        if self.phase is Phase.LOADING or self.service is None:
            raise ApiError(503, "loading", "the model is loading. Try again soon.", retry_after_s=5)
        if self.phase is Phase.DRAINING:
            raise ApiError(503, "draining", "the server is shutting down. Try another one.", retry_after_s=5)
        if not self.service.engine.alive:
            raise ApiError(503, "failed", "the computing thread has ended. Restart the server.")
        return self.service
