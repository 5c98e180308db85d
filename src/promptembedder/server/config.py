"""What a server allows, and how it computes."""

from dataclasses import dataclass, field

from promptembedder.errors import ConfigError

__all__ = ["ComputeSettings", "Limits", "ServerSettings"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all that wait, may ask for.

    Attributes:
        max_waiting: Vectors that may wait or be computed at once; what comes beyond is refused at once.
        max_body_bytes: Of a request.
        max_inputs: Texts of a request.
        max_input_chars: Of a text, before it is cut into tokens.
        max_instruction_chars: Of an instruction.
        max_instructions: Of a request.
        deadline_s: After which a request is given up. What would wait longer by the server's own reckoning is refused.
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
class ComputeSettings:
    """How texts are put together and what is kept.

    Attributes:
        max_batch_tokens: Tokens of texts read at once, padding included; None: 2048 on a CPU, which then runs at full
            speed, and 16384 on a GPU.
        max_cached_instructions: Free instructions whose soft tokens are kept, of all tenants together.
        warmup: What is computed before the server is ready: nothing, one short text, or a batch as large as any.
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
class ServerSettings:
    """Of one served model.

    Attributes:
        model_name: What clients call it.
        instructions: `free`: any that a client writes, which needs the prompter; `compiled`: those of the model.
        truncate: What happens to texts longer than the model reads: refused, or cut at the left or the right. A request
            may say otherwise.
    """

    model_name: str
    instructions: str = "free"
    truncate: str = "error"
    limits: Limits = field(default_factory=Limits)
    compute: ComputeSettings = field(default_factory=ComputeSettings)

    def __post_init__(self) -> None:
        if not self.model_name or "@" in self.model_name:
            raise ConfigError(f"model_name must be a word without '@', got {self.model_name!r}. Use --model-name.")
        if self.instructions not in ("free", "compiled"):
            raise ConfigError(f"instructions must be free or compiled, got {self.instructions!r}.")
        if self.truncate not in ("error", "left", "right"):
            raise ConfigError(f"truncate must be error, left or right, got {self.truncate!r}.")
