"""What a job asks of an encoder, and no more: any SentenceTransformer, a baseline or a remote client has it."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

__all__ = ["Encoder"]


@runtime_checkable
class Encoder(Protocol):
    """Texts in, one vector each out."""

    def encode(
        self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **kwargs: Any
    ) -> np.ndarray:
        """Vectors of the texts under the instruction `prompt`, float32 [texts dim]."""
        ...
