"""Soft tokens by instruction: compiled ones that came with the model, and a memory of generated ones."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from promptembedder.types import Float, Tensor

__all__ = ["SoftTokenStore"]

_MAX_REMEMBERED = 4096  # instructions; about 50 MB at K = 5 and width 576

Generate = Callable[[Sequence[str]], Float[Tensor, "instructions prompt dim_r"]]


class SoftTokenStore:
    """Generates each distinct instruction once for each state of the trained weights.

    While training, that is once a step: the columns of a batch share the tokens and their graph, and the first
    backward pass through it, or an optimiser step, makes the store forget them. In evaluation they stay until the
    weights change.
    """

    def __init__(self) -> None:
        """Start with nothing compiled and nothing remembered."""
        self.compiled: dict[str, Float[Tensor, "prompt dim_r"]] = {}
        self._compiled_at: tuple[int, ...] | None = None
        self._remembered: OrderedDict[str, Tensor] = OrderedDict()
        self._remembered_at: tuple[object, ...] = ()

    def add_compiled(self, tokens: dict[str, Float[Tensor, "prompt dim_r"]], weights: Sequence[Tensor]) -> None:
        """Keep tokens that belong to the trained `weights` as they are now."""
        self.compiled = {**self.compiled, **tokens}
        self._compiled_at = _versions(weights)

    def valid_compiled(self, weights: Sequence[Tensor]) -> dict[str, Float[Tensor, "prompt dim_r"]]:
        """The compiled tokens, if the weights are still those they were compiled with; nothing otherwise."""
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
        """Soft tokens of each instruction on `device`, generated in one call for all that are not at hand."""
        self._forget_outdated(weights, training)
        at_hand = {**self._remembered, **self.compiled}
        missing = [text for text in dict.fromkeys(instructions) if text not in at_hand]
        if missing:
            made = generate(missing)
            if made.requires_grad:
                made.register_hook(self._forget_after_backward)
            # unbind, not iteration: one graph node for the whole batch
            new = dict(zip(missing, made.unbind(0), strict=True))
            self._remembered.update(new)
            at_hand.update(new)
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        # compiled tokens stay where they were loaded, and a model may have moved since
        return torch.stack([at_hand[text].to(device) for text in instructions])

    def clear(self) -> None:
        """Drop what was generated; compiled tokens stay."""
        self._remembered.clear()

    def _forget_outdated(self, weights: Sequence[Tensor], training: bool) -> None:
        versions = _versions(weights)
        if training or (self.compiled and versions != self._compiled_at):
            self.compiled = {}  # compiled tokens carry no gradient, and belong to weights that are gone
        now = (versions, training, torch.is_grad_enabled())
        # a fused optimiser does not count its changes: while a gradient waits, one may have stepped unseen
        unsure = not training and any(weight.grad is not None for weight in weights)
        if unsure or now != self._remembered_at:
            self._remembered.clear()
            self._remembered_at = () if unsure else now

    def _forget_after_backward(self, _: Tensor) -> None:
        # the graph behind the tokens is freed by this backward pass: they cannot be used again
        self._remembered.clear()

    def __getstate__(self) -> dict[str, object]:
        """Without the memory: tensors inside a graph cannot be copied or sent to another process."""
        return {"compiled": self.compiled, "_compiled_at": self._compiled_at}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore the compiled tokens."""
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)


def _versions(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """Changes with every in-place update of any weight, so with every optimiser step."""
    return tuple(weight._version for weight in weights)
