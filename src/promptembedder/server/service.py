"""What a served model does for a request: names to instructions, texts to tokens, vectors of the width asked for."""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptembedder.data import clean_text
from promptembedder.errors import ConfigError
from promptembedder.model import PromptEmbedder
from promptembedder.backbone import TokenRow
from promptembedder.server.batch_embedder import InstructionKey, VectorComputer
from promptembedder.server.engine import EmbeddingEngine
from promptembedder.server.errors import ApiError
from promptembedder.server.telemetry import ServerMetrics
from promptembedder.server.config import ServerSettings
from promptembedder.types import Float

__all__ = ["Embedded", "EmbeddingService", "Wanted"]

Inputs = Sequence[str | Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a request asks for.

    Attributes:
        inputs: Texts, or their token ids without what the model puts around them.
        instructions: As the client wrote them; none: the model's own.
        named: Of one that the model brings along, instead of `instructions`.
        tenant: Whose request it is.
    """

    inputs: Inputs
    instructions: Sequence[str] = ()
    named: str | None = None
    dimensions: int | None = None
    truncate: str | None = None
    tenant: str = ""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Vectors, and what they took.

    Attributes:
        tokens: Those that were read, without what was cut off.
        truncated: Texts that lost an end.
    """

    vectors: Float[np.ndarray, "instructions texts dim"]
    tokens: int
    truncated: int


class EmbeddingService:
    """One loaded model that answers requests."""

    def __init__(self, model: PromptEmbedder, settings: ServerSettings, metrics: ServerMetrics) -> None:
        """Take over `model`, which nobody else should use from now on.

        Raises:
            ConfigError: Its texts are not read independently of the instruction, or only compiled instructions are to
                be answered and it has none.
        """
        encoder = model.encoder.eval()
        if not encoder.reads_text_once:
            raise ConfigError("serving needs placement 'suffix' and conditioning 'instruction'. Train such a model.")
        if settings.instructions == "free" and encoder.prompter is None:
            raise ConfigError("free instructions need the prompter, and the model was loaded without it.")
        self.model, self.settings, self.metrics = model, settings, metrics
        self._encoder, self.dim = encoder, encoder.reader.dim
        self.names = named_instructions(encoder.store.compiled, model.prompts)
        if settings.instructions == "compiled" and not self.names:
            raise ConfigError(
                "the model has no compiled instruction to serve. "
                "Compile some: promptembedder compile MODEL --instruction TEXT; or serve --instructions free."
            )
        on_gpu = encoder.device.type != "cpu"
        self.max_batch_tokens = settings.compute.max_batch_tokens or (16384 if on_gpu else 2048)
        computer = VectorComputer(
            encoder,
            max_batch_tokens=self.max_batch_tokens,
            max_cached_instructions=settings.compute.max_cached_instructions,
        )
        self.engine = EmbeddingEngine(
            computer.vectors,
            dim=self.dim,
            max_batch_tokens=self.max_batch_tokens,
            max_waiting=settings.limits.max_waiting,
            observe=metrics.batch_done,
        )
        metrics.watch_waiting(lambda: self.engine.waiting)

    @property
    def max_input_tokens(self) -> int:
        """Tokens of a text that are read at most, what the model puts before it included."""
        return self._encoder.max_seq_length

    async def embed(self, wanted: Wanted) -> Embedded:
        """Vectors of all inputs under each instruction.

        Raises:
            ApiError: The request cannot be answered; its message says what to change.
        """
        self._check(wanted)
        keys = [InstructionKey(wanted.tenant, asked) for asked in self._instructions(wanted)]
        if len(keys) * len(wanted.inputs) > self.settings.limits.max_waiting:
            raise ApiError(
                413,
                "too_many_vectors",
                f"{len(wanted.inputs)} inputs under {len(keys)} instructions are more than the "
                f"{self.settings.limits.max_waiting} vectors that are computed at once. Send fewer at a time.",
                param="input",
            )
        start = time.monotonic()
        # in another thread: a long text takes milliseconds, in which nobody else would be heard
        tokenised = await asyncio.to_thread(self._token_ids, wanted.inputs)
        self.metrics.tokenise_seconds.observe(time.monotonic() - start)
        rows, truncated = self._rows(tokenised, wanted.truncate or self.settings.truncate)
        vectors = await self.engine.embed(rows, keys, deadline_s=self.settings.limits.deadline_s)
        tokens = sum(map(len, rows))
        self.metrics.inputs.inc(len(rows))
        self.metrics.tokens.inc(tokens)
        self.metrics.truncated.inc(truncated)
        return Embedded(vectors=_shortened(vectors, wanted.dimensions), tokens=tokens, truncated=truncated)

    def warm_up(self) -> None:
        """Compute what the settings say before anybody waits for it; not to be called where an event loop runs."""
        settings = self.settings.compute
        if settings.warmup == "none":
            return
        tokenizer = self._encoder.reader.tokenizer
        ids, length = tokenizer.text_ids(["warm "])[0], self.max_input_tokens
        # texts that differ in one place each: alike ones would be read once
        whole = (*tokenizer.prefix, *(ids * length))[:length]
        count = max(self.max_batch_tokens // length, 1) if settings.warmup == "full" else 1
        rows = [whole[: length - place] if count > 1 else whole[:16] for place in range(min(count, length))]
        instruction = next(iter(self.names.values()), self._encoder.instruction_of(None))
        asyncio.run(self.engine.embed(rows, [InstructionKey("", instruction)], deadline_s=3600))

    def close(self) -> None:
        """Compute what waits and end."""
        self.engine.stop()

    def _check(self, wanted: Wanted) -> None:
        limits = self.settings.limits
        count = len(wanted.inputs)
        if not count:
            raise ApiError(400, "empty_input", "input is an empty list. Send at least one text.", param="input")
        if count > limits.max_inputs:
            message = f"{count} inputs are more than the {limits.max_inputs} of a request. Send fewer at a time."
            raise ApiError(413, "too_many_inputs", message, param="input")
        for place, own in enumerate(wanted.inputs):
            if not len(own):
                raise ApiError(400, "empty_input", f"input {place} is empty. Leave it out.", param="input")
            if isinstance(own, str) and len(own) > limits.max_input_chars:
                message = f"input {place} has {len(own)} characters, more than {limits.max_input_chars}. Shorten it."
                raise ApiError(422, "input_too_long", message, param="input")
        if len(wanted.instructions) > limits.max_instructions:
            message = f"{len(wanted.instructions)} instructions are more than {limits.max_instructions}. Send fewer."
            raise ApiError(422, "too_many_instructions", message, param="instruction")
        longest = max(map(len, wanted.instructions), default=0)
        if longest > limits.max_instruction_chars:
            message = f"an instruction has {longest} characters, more than {limits.max_instruction_chars}. Shorten it."
            raise ApiError(422, "instruction_too_long", message, param="instruction")
        if wanted.dimensions is not None and not 1 <= wanted.dimensions <= self.dim:
            message = f"dimensions must be between 1 and {self.dim}, got {wanted.dimensions}."
            raise ApiError(400, "bad_dimensions", message, param="dimensions")

    def _instructions(self, wanted: Wanted) -> list[str]:
        if wanted.named is not None:
            if wanted.instructions:
                message = "the model's name brings an instruction already. Leave instruction out, or the part after @."
                raise ApiError(400, "two_instructions", message, param="instruction")
            if wanted.named not in self.names:
                raise ApiError(
                    404,
                    "instruction_not_found",
                    "no compiled instruction has this id; /v1/models lists them.",
                    param="model",
                )
            return [self.names[wanted.named]]
        asked = [self._encoder.instruction_of(text) for text in wanted.instructions or [""]]
        if self.settings.instructions == "compiled" and not set(asked) <= set(self.names.values()):
            what = "this instruction is" if wanted.instructions else "no instruction was given, and the model's own is"
            raise ApiError(
                400,
                "instruction_not_compiled",
                f"{what} not among those that this server answers. /v1/models lists them.",
                param="instruction",
            )
        return asked

    def _token_ids(self, inputs: Inputs) -> list[list[int]]:
        texts = [own for own in inputs if isinstance(own, str)]
        tokenised = iter(self._encoder.reader.tokenizer.text_ids([clean_text(text) for text in texts]))
        return [
            next(tokenised) if isinstance(own, str) else self._checked(place, own) for place, own in enumerate(inputs)
        ]

    def _checked(self, place: int, ids: Sequence[int]) -> list[int]:
        """Token ids as a client sent them."""
        vocab = len(self._encoder.reader.input_table)
        special = set(self._encoder.tokenizer.all_special_ids)
        for one in ids:
            if not 0 <= one < vocab:
                message = f"input {place} has the token id {one}; this model's are 0 to {vocab - 1}."
                raise ApiError(400, "bad_token_id", message, param="input")
            if one in special:
                message = f"input {place} has the special token id {one}. Send the text's own tokens alone."
                raise ApiError(400, "bad_token_id", message, param="input")
        return list(ids)

    def _rows(self, tokenised: Sequence[list[int]], truncate: str) -> tuple[list[TokenRow], int]:
        prefix = self._encoder.reader.tokenizer.prefix
        room = self.max_input_tokens - len(prefix)
        long = [place for place, ids in enumerate(tokenised) if len(ids) > room]
        if long and truncate == "error":
            message = (
                f"input {long[0]} has {len(tokenised[long[0]])} tokens, the model reads {room}. "
                "Shorten it, or ask with truncate left or right."
            )
            raise ApiError(422, "input_too_long", message, param="input")
        cut = [ids[-room:] if truncate == "left" else ids[:room] for ids in tokenised]
        return [(*prefix, *ids) for ids in cut], len(long)


def named_instructions(compiled: Mapping[str, object], prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Compiled instructions by id: the name of the model's prompt that says the same, or 8 digits of its hash."""
    names = {text.strip(): name for name, text in prompts.items() if text}
    return {names.get(text) or hashlib.sha256(text.encode()).hexdigest()[:8]: text for text in compiled}


def _shortened(
    vectors: Float[np.ndarray, "instructions texts dim"], dimensions: int | None
) -> Float[np.ndarray, "instructions texts shorter"]:
    """The first `dimensions` numbers of each vector, at length 1 again."""
    if dimensions is None or dimensions == vectors.shape[-1]:
        return vectors
    short = vectors[..., :dimensions]
    norm = np.linalg.norm(short, axis=-1, keepdims=True)
    return short / np.maximum(norm, np.finfo(np.float32).tiny)
