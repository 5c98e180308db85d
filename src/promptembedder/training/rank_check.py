"""Whether what all processes of a run must share is the same on each of them."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from promptembedder.errors import RanksDifferError
from promptembedder.shapes import Tensor
from promptembedder.training.ranks import Ranks

__all__ = ["check_alike"]


def check_alike(named: Mapping[str, Sequence[Tensor]], ranks: Ranks, *, step: int) -> None:
    """Compare the numbers of some tensors, bit by bit, with those of the other processes.

    Args:
        named: What the error calls them, and the tensors.

    Raises:
        RanksDifferError: They differ; raised on every process.
    """
    own = {name: _digest(tensors) for name, tensors in named.items()}
    gathered: list[dict[str, str]] = [own] * ranks.count
    dist.all_gather_object(gathered, own)
    for name in own:
        for rank, digests in enumerate(gathered):
            if digests[name] != gathered[0][name]:
                raise RanksDifferError(
                    f"step {step}: the {name} of process {rank} differ from those of process 0. "
                    "Give all processes the same recipe, data and library versions."
                )


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
