"""Cache of soft tokens by instruction: compiled ones of the model, and generated ones."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from promptembedder.types import Float, Tensor

__all__ = ["SoftTokenStore"]

_MAX_GENERATED = 4096  # instructions; about 50 MB at K = 5 and width 576

Generate = Callable[[Sequence[str]], Float[Tensor, "instructions prompt dim_r"]]


class SoftTokenStore:
    """Cache that generates the soft tokens of each instruction once per state of the trained weights.

    In training that is once per step: the columns of a batch share the tokens and their graph, and the backward pass
    or an optimiser step clears the cache. In evaluation the tokens are valid until the weights change.
    """

    def __init__(self) -> None:
        """Create an empty cache."""
        self.compiled: dict[str, Float[Tensor, "prompt dim_r"]] = {}
        self._compiled_at: tuple[int, ...] | None = None
        self._generated: OrderedDict[str, Tensor] = OrderedDict()
        self._generated_at: tuple[object, ...] = ()

    def add_compiled(self, tokens: dict[str, Float[Tensor, "prompt dim_r"]], weights: Sequence[Tensor]) -> None:
        """Add compiled tokens of the present values of the trained `weights`."""
        self.compiled = {**self.compiled, **tokens}
        self._compiled_at = _versions(weights)

    def valid_compiled(self, weights: Sequence[Tensor]) -> dict[str, Float[Tensor, "prompt dim_r"]]:
        """Return the compiled tokens if the weights have not changed since, else an empty dictionary."""
        return self.compiled if _versions(weights) == self._compiled_at else {}

    def get(
        self,
        instructions: Sequence[str],
        generate: Generate,
        weights: Sequence[Tensor],
        *,
        training: bool,
        device: torch.device,
    ) -> Float[Tensor, "instructions prompt dim_r"]:
        """Return the soft tokens of each instruction on `device`, generating all missing ones in one call."""
        self._drop_outdated(weights, training)
        available = {**self._generated, **self.compiled}
        missing = [text for text in dict.fromkeys(instructions) if text not in available]
        if missing:
            generated_tokens = generate(missing)
            if generated_tokens.requires_grad:
                generated_tokens.register_hook(self._clear_after_backward)
            # unbind, not iteration: one graph node for the whole batch
            new = dict(zip(missing, generated_tokens.unbind(0), strict=True))
            self._generated.update(new)
            available.update(new)
        while len(self._generated) > _MAX_GENERATED:
            self._generated.popitem(last=False)
        # compiled tokens stay where they were loaded, and a model may have moved since
        return torch.stack([available[text].to(device) for text in instructions])

    def clear(self) -> None:
        """Drop the generated tokens. Compiled tokens are not affected."""
        self._generated.clear()

    def _drop_outdated(self, weights: Sequence[Tensor], training: bool) -> None:
        versions = _versions(weights)
        if training or (self.compiled and versions != self._compiled_at):
            self.compiled = {}  # compiled tokens have no gradient and belong to earlier weights
        now = (versions, training, torch.is_grad_enabled())
        # a fused optimiser does not increase version counters: while a gradient exists, it may have stepped
        may_be_outdated = not training and any(weight.grad is not None for weight in weights)
        if may_be_outdated or now != self._generated_at:
            self._generated.clear()
            self._generated_at = () if may_be_outdated else now

    def _clear_after_backward(self, _: Tensor) -> None:
        # the graph behind the tokens is freed by this backward pass: they cannot be used again
        self._generated.clear()

    def __getstate__(self) -> dict[str, object]:
        """Return the state without generated tokens: tensors inside a graph cannot be copied to another process."""
        return {"compiled": self.compiled, "_compiled_at": self._compiled_at}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore the compiled tokens."""
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)


def _versions(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the version counters of the weights, which change with every in-place update."""
    return tuple(weight._version for weight in weights)
