"""The instruction's say in what is kept of the frozen text states: one factor per direction."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from promptembedder.method.relaxation import RelaxedTokens
from promptembedder.types import Float, Tensor

__all__ = ["InstructionGate", "gate_width"]

_HIDDEN = 128


def gate_width(rank: int, *, prompt: int) -> int:
    """Return the columns that hold the `rank` gate values of an instruction beside each of its soft tokens."""
    return math.ceil(rank / prompt)


class InstructionGate(nn.Module):
    """Gate values g(s) of an instruction, computed from what the prompter generated for it.

    A two-layer perceptron over all K tokens, g = up(gelu(down(rms_norm(tokens)))). `up` is initialised to zero: an
    untrained gate leaves the text states as they are.
    """

    def __init__(self, *, dim_p: int, prompt: int, rank: int, seed: int = 0) -> None:
        """Initialise the gate of `rank` directions; `seed` draws the first layer."""
        super().__init__()
        self.width = gate_width(rank, prompt=prompt)
        generator = torch.Generator().manual_seed(seed)
        # the generator's device, not the default one: a generator draws on its device only
        down = torch.randn(prompt * dim_p, _HIDDEN, generator=generator, device=generator.device)
        self.down = nn.Parameter(down / (prompt * dim_p) ** 0.5)
        self.down_bias = nn.Parameter(torch.zeros(_HIDDEN))
        self.up = nn.Parameter(torch.zeros(_HIDDEN, prompt * self.width))
        self.up_bias = nn.Parameter(torch.zeros(prompt * self.width))

    def forward(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Compute the gate values, float32, distributed over the K tokens so that they are stored beside them."""
        unit = F.rms_norm(tokens.instructed.float(), tokens.embeddings.shape[-1:])
        hidden = F.gelu(unit.flatten(1) @ self.down + self.down_bias)
        return (hidden @ self.up + self.up_bias).unflatten(1, (-1, self.width))
