"""Configuration of the server: limits, batching and the served model."""

from dataclasses import dataclass, field

from promptembedder.errors import ConfigError

__all__ = ["ComputeConfig", "Limits", "ReadingConfig", "ServerConfig"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on a single request and on the queue.

    Attributes:
        max_waiting: Maximum number of vectors that are queued or being computed. Requests beyond it get status 429.
        max_body_bytes: Maximum request body size in bytes.
        max_inputs: Maximum number of texts of a request.
        max_input_chars: Maximum length of a text in characters, before tokenization.
        max_instruction_chars: Maximum length of an instruction in characters.
        max_instructions: Maximum number of instructions of a request.
        deadline_s: Time limit of a request in seconds. A request whose estimated wait exceeds it gets status 429.
    """

    max_waiting: int = 2048
    max_body_bytes: int = 4_000_000
    max_inputs: int = 2048
    max_input_chars: int = 200_000
    max_instruction_chars: int = 2000
    max_instructions: int = 64
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name} must be more than 0, got {value}.")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Batching, caching and warm-up.

    Attributes:
        max_batch_tokens: Maximum number of tokens of a batch, padding included. If None, 2048 on a CPU, which is enough
            for full speed, and 16384 on a GPU.
        max_cached_instructions: Number of free instructions whose soft tokens are cached, over all tenants.
        warmup: Computation before the server is ready: `none`, `min` (one short text) or `full` (a batch of maximum
            size).
    """

    max_batch_tokens: int | None = None
    max_cached_instructions: int = 1024
    warmup: str = "min"

    def __post_init__(self) -> None:
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens must be at least 1, got {self.max_batch_tokens}. Try 2048.")
        if self.max_cached_instructions < 1:
            raise ConfigError(f"max_cached_instructions must be at least 1, got {self.max_cached_instructions}.")
        if self.warmup not in ("none", "min", "full"):
            raise ConfigError(f"warmup must be none, min or full, got {self.warmup!r}.")


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How the reader of the served model is loaded and run.

    Attributes:
        reader: Reader of a transferred model. If None, the one it was saved with.
        quantization: Quantization of the reader. If None, that of the training.
        early_exit_fraction: Fraction of the reader's layers that texts run through. If None, the model's.
        max_length: Maximum number of tokens of a text. If None, the model's.
        device: Device. If None, a GPU if there is one.
    """

    reader: str | None = None
    quantization: str | None = None
    early_exit_fraction: float | None = None
    max_length: int | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Configuration of one served model.

    Attributes:
        model_name: Name of the model in requests and responses.
        instructions: `free` accepts any instruction and needs the prompter. `compiled` accepts only the instructions
            compiled into the model.
        truncate: Default for texts longer than the model's maximum: `error` rejects them, `left` and `right` name the
            end that is cut off.
        dimensions: Number of dimensions of vectors of requests without `dimensions`. If None, all.
    """

    model_name: str
    instructions: str = "free"
    truncate: str = "error"
    dimensions: int | None = None
    limits: Limits = field(default_factory=Limits)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if not self.model_name or "@" in self.model_name:
            raise ConfigError(f"model_name must be a word without '@', got {self.model_name!r}. Use --model-name.")
        if self.instructions not in ("free", "compiled"):
            raise ConfigError(f"instructions must be free or compiled, got {self.instructions!r}.")
        if self.truncate not in ("error", "left", "right"):
            raise ConfigError(f"truncate must be error, left or right, got {self.truncate!r}.")
